// Rows of tokens turned into columns little by little, while sums are taken that do not need them
// yet. Included inside an ISA region, once for each ISA namespace.

// Transposes [tokens][columns] into [padded columns][kStride]: squares of a vector of tokens and a
// cache line of columns, one a step. A step also asks for a square to come. Fetched all at once,
// rows that lie a power of two apart would drive each other out of the cache.
template <class V, int64_t kStride>
class Transposing {
 public:
  Transposing() = default;
  Transposing(const float* from, int64_t stride, int64_t tokens, int64_t columns, int64_t padded,
              float* to)
      : from_(from),
        stride_(stride),
        tokens_(tokens),
        columns_(columns),
        padded_(padded),
        to_(to) {}

  int64_t steps() const { return ceil_div(tokens_, kLanes) * ceil_div(columns_, kLine); }
  bool done() const { return tokens_ <= 0; }

  void step() {
    fetch_later();
    const int64_t count = min64(kLanes, tokens_), inputs = min64(kLine, columns_ - column_);
    float* const to = to_ + column_ * kStride;
    if (count == kLanes && inputs == kLine) {
      pack_strip<V>(from_ + column_, stride_, kLanes, kLine, to, kStride);
    } else {
      pack_rest(from_ + column_, count, inputs, to);
    }
    column_ += kLine;
    if (column_ < columns_) return;
    for (int64_t k = columns_; k < padded_; ++k) V::store(to_ + k * kStride, V::zero());
    column_ = 0;
    from_ += kLanes * stride_;
    to_ += kLanes;
    tokens_ -= kLanes;
  }

  void finish() {
    while (!done()) step();
  }

 private:
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kLinesAhead = 2;

  SPARSEKERN_INLINE void fetch_later() const {
    int64_t column = column_ + kLinesAhead * kLine, first = 0;
    if (column >= columns_) {
      column -= ceil_div(columns_, kLine) * kLine;
      first = kLanes;
    }
    if (column < 0) return;
    const int64_t end = min64(tokens_, first + kLanes);
    for (int64_t t = first; t < end; ++t) prefetch(from_ + t * stride_ + column);
  }

  // Tokens that fill up the last vector are zero.
  SPARSEKERN_NOINLINE void pack_rest(const float* from, int64_t count, int64_t columns,
                                     float* to) const {
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t t = 0; t < kLanes; ++t) {
        to[k * kStride + t] = t < count ? from[t * stride_ + k] : 0.0f;
      }
    }
  }

  const float* from_ = nullptr;
  int64_t stride_ = 0, tokens_ = 0, columns_ = 0, padded_ = 0;
  float* to_ = nullptr;
  int64_t column_ = 0;
};

// A transposition whose steps are spread evenly over about `turns` turns of something else.
template <class V, int64_t kStride>
class Meanwhile {
 public:
  Meanwhile() = default;
  Meanwhile(const Transposing<V, kStride>& work, int64_t turns)
      : work_(work), steps_(work.steps()), turns_(max64(1, turns)) {}

  SPARSEKERN_INLINE void turn() {
    for (due_ += steps_; due_ >= turns_; due_ -= turns_) {
      if (work_.done()) return;
      work_.step();
    }
  }

  void finish() { work_.finish(); }

 private:
  Transposing<V, kStride> work_;
  int64_t steps_ = 0, turns_ = 1, due_ = 0;
};
