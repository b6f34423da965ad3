// Kernels for weights that stand alone and few tokens: whole rows of weights, as they lie in
// memory. Included inside an ISA region, once for each ISA namespace.
//
//   sum[s] += weights[s][i] * x[columns[s][i]]           S rows s
//
// For one token the lanes are weights of a row, whose inputs are loaded one by one. Several tokens
// are the lanes of a vector. Their x may fill L2, and so four rows go side by side: columns ascend
// in all of them, and what one asks for the others soon do. The order in which a row is summed up
// does not depend on the rows beside it.

// One token: the lanes are four weights of a row.
template <class V>
struct RowOfOne {
  static constexpr int kTokens = 1;
  static_assert(V::kLanes == 4, "weights by fours");

  typename V::Reg sums[2];
  float rest;

  SPARSEKERN_INLINE void begin() {
    sums[0] = sums[1] = V::zero();
    rest = 0.0f;
  }
  // `turn`: which of a row's fours it is.
  template <class Value>
  SPARSEKERN_INLINE void add_four(int turn, const Value* w, const uint16_t* columns,
                                  const float* x) {
    uint64_t four;  // one load instead of four: loads are what this is bound by
    __builtin_memcpy(&four, columns, sizeof four);
    const auto at = [&](int i) { return x[(uint16_t)(four >> 16 * i)]; };
    sums[turn % 2] = V::fma(V::load(w), V::of(at(0), at(1), at(2), at(3)), sums[turn % 2]);
  }
  SPARSEKERN_INLINE void add(float w, const uint16_t* column, const float* x) {
    rest += w * x[*column];
  }
  SPARSEKERN_INLINE void store(float* cell) const {
    float lane[4];
    V::store(lane, V::add(sums[0], sums[1]));
    *cell = (lane[0] + lane[1]) + (lane[2] + lane[3]) + rest;
  }
};

// A vector of tokens, of which x has one for each input.
template <class V>
struct RowOfVector {
  static constexpr int kTokens = V::kLanes;

  typename V::Reg sums[2];

  static SPARSEKERN_INLINE typename V::Reg load(const float* x, uint16_t column) {
    return V::load(x + (size_t)column * kTokens);
  }
  SPARSEKERN_INLINE void begin() { sums[0] = sums[1] = V::zero(); }
  template <class Value>
  SPARSEKERN_INLINE void add_four(int, const Value* w, const uint16_t* columns, const float* x) {
    const typename V::Reg four = V::load_quad(w);
    sums[0] = V::fma(V::template splat_of<0>(four), load(x, columns[0]), sums[0]);
    sums[1] = V::fma(V::template splat_of<1>(four), load(x, columns[1]), sums[1]);
    sums[0] = V::fma(V::template splat_of<2>(four), load(x, columns[2]), sums[0]);
    sums[1] = V::fma(V::template splat_of<3>(four), load(x, columns[3]), sums[1]);
  }
  SPARSEKERN_INLINE void add(float w, const uint16_t* column, const float* x) {
    sums[0] = V::fma(V::set(w), load(x, *column), sums[0]);
  }
  SPARSEKERN_INLINE void store(float* cell) const { V::store(cell, V::add(sums[0], sums[1])); }
};

// The sums of S rows, `step` apart from `row` on, into cells of one row after another.
template <class Row, int S, class Value>
static SPARSEKERN_NOINLINE void sum_rows(const BlockMatrixOf<Value>& a, int64_t row, int64_t step,
                                         const float* x, float* cells) {
  // By which values and columns are fetched: 2 KiB of the former, which memory takes to answer.
  constexpr int64_t kAhead = 512;
  const Value* w[S];
  const uint16_t* columns[S];
  int64_t count[S], common = INT64_MAX;
  Row rows[S];
  SPARSEKERN_UNROLL
  for (int s = 0; s < S; ++s) {
    const int64_t begin = a.offsets[row + s * step];
    w[s] = a.values + begin;
    columns[s] = a.columns + begin;
    count[s] = a.offsets[row + s * step + 1] - begin;
    common = min64(common, count[s]);
    rows[s].begin();
  }
  int64_t i = 0;
  for (; i + kLine <= common; i += kLine) {
    SPARSEKERN_UNROLL
    for (int s = 0; s < S; ++s) {
      __builtin_prefetch(w[s] + i + kAhead);
      __builtin_prefetch(columns[s] + i + kAhead);
    }
    SPARSEKERN_UNROLL
    for (int j = 0; j < kLine; j += 4) {
      SPARSEKERN_UNROLL
      for (int s = 0; s < S; ++s) rows[s].add_four(j / 4, w[s] + i + j, columns[s] + i + j, x);
    }
  }
  SPARSEKERN_UNROLL
  for (int s = 0; s < S; ++s) {
    int64_t j = i;
    for (; j + 4 <= count[s]; j += 4) rows[s].add_four(0, w[s] + j, columns[s] + j, x);
    for (; j < count[s]; ++j) rows[s].add(widened(w[s][j]), columns[s] + j, x);
    rows[s].store(cells + s * step * Row::kTokens);
  }
}

// Vectors of four tokens, and wider ones, as many as they hold.
template <class Value, class Four, class... Wider>
struct RowsFamily {
  using Matrix = BlockMatrixOf<Value>;
  static constexpr int64_t kMostTokens = (Four::kLanes, ..., Wider::kLanes);

  // A token as float32: where it is, or widened into `room`.
  static const float* wide(const float* x, int64_t, float*) { return x; }
  static const float* wide(const BFloat16* x, int64_t inputs, float* room) {
    pack_side_by_side<1>(x, 0, 1, inputs, inputs, room);
    return room;
  }

  template <class V>
  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, float* panel) {
    pack_panel<V>(x, stride, tokens, inputs, inputs, panel);
  }
  template <class V>
  static void pack(const BFloat16* x, int64_t stride, int64_t tokens, int64_t inputs,
                   float* panel) {
    pack_side_by_side<V::kLanes>(x, stride, tokens, inputs, inputs, panel);
  }

  // kSide rows at a time.
  template <class Row, int kSide>
  static void run_rows(const Matrix& a, const CallOf<Value>& call, const Share& share,
                       const float* x, int64_t tokens, float* cells) {
    constexpr int64_t kWidth = Row::kTokens, kChunk = kMostCells / kWidth;
    int64_t end;
    for (int64_t begin = share.row_begin; begin < share.row_end; begin = end) {
      end = min64(share.row_end, begin + kChunk);
      const int64_t step = (end - begin) / kSide;
      for (int64_t i = 0; i < step; ++i) {
        sum_rows<Row, kSide>(a, begin + i, step, x, cells + i * kWidth);
      }
      for (int64_t i = step * kSide; i < end - begin; ++i) {
        sum_rows<Row, 1>(a, begin + i, 0, x, cells + i * kWidth);
      }
      finish_cells<Four, kWidth>(call, begin, end - begin, tokens, cells,
                                 call.y + share.token_begin * call.y_stride);
    }
  }

  // The narrowest vector that holds all tokens.
  template <class V, class... Others>
  static void run_vector(const Matrix& a, const CallOf<Value>& call, const Share& share,
                         float* cells, float* panel) {
    const int64_t tokens = share.token_end - share.token_begin;
    if constexpr (sizeof...(Others) > 0) {
      if (tokens > V::kLanes) return run_vector<Others...>(a, call, share, cells, panel);
    }
    pack<V>(call.x + share.token_begin * call.x_stride, call.x_stride, tokens, a.in_features,
            panel);
    run_rows<RowOfVector<V>, 4>(a, call, share, panel, tokens, cells);
  }

  // At most kMostTokens tokens.
  static void run_share(const Matrix& a, const CallOf<Value>& call, const Share& share) {
    float* const cells = share.scratch;
    float* const panel = cells + kMostCells;
    if (share.token_end - share.token_begin == 1) {
      const float* x = wide(call.x + share.token_begin * call.x_stride, a.in_features, panel);
      run_rows<RowOfOne<Four>, 1>(a, call, share, x, 1, cells);
    } else {
      run_vector<Four, Wider...>(a, call, share, cells, panel);
    }
  }
};
