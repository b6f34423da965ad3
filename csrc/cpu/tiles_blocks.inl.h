// Tiles of blocks that are as tall as strips of outputs. Included inside an ISA region, before
// tiles.inl.h, which multiplies by them.

// The inputs that a block row keeps are gathered where they are few, and tiles hold nothing else.
// Where they are many, or lie in whole tiles, the panel is multiplied as it lies, but for tiles
// without any weight.
template <class V>
class TallBlocks {
 public:
  using Matrix = BlockMatrixOf<BFloat16>;
  static constexpr bool kMayGather = true;

  explicit TallBlocks(const Matrix& a) : a_(a), gathers_(gathering_pays(a)) {}

  bool gathers() const { return gathers_; }

  int64_t fill(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    int64_t listed_row = -1, steps = 0;
    const uint32_t* list = nullptr;
    for (; begin < end; begin += V::kTileOutputs) {
      const int64_t row = begin / a_.rows;
      if (row != listed_row) steps = gathers_ ? steps_of_gathered(row) : windows_of(row);
      if (!chunk.has_room(steps)) break;
      if (row != listed_row) {
        list = gathers_ ? list_inputs(row, steps, chunk) : list_windows(row, steps, chunk);
        listed_row = row;
      }
      const BFloat16* const w = a_.values + a_.stored_before(row) + begin % a_.rows;
      if (gathers_) {
        pack_gathered(w, inputs_of(row), steps, chunk.weights());
      } else {
        spread(w, row, chunk.dense());
        pack_windows(chunk.dense(), list, steps, chunk.weights());
      }
      chunk.keep_strip(steps, list);
    }
    return begin;
  }

 private:
  // By the time that each way is expected to take, of which gathering one tile of inputs takes
  // four fifths of what multiplying by it does. The density is that of the whole weight: the choice
  // must not depend on how the work is cut.
  static bool gathering_pays(const Matrix& a) {
    constexpr double kGathering = 0.8;
    double empty = 1 - a.density;  // chance that a tile is
    for (int64_t cols = a.cols; cols < V::kTileInputs; cols += a.cols) empty *= 1 - a.density;
    return a.density * (1 + kGathering) < 1 - empty;
  }

  int64_t inputs_of(int64_t row) const { return (a_.offsets[row + 1] - a_.offsets[row]) * a_.cols; }
  int64_t steps_of_gathered(int64_t row) const { return ceil_div(inputs_of(row), V::kTileInputs); }

  const uint32_t* list_inputs(int64_t row, int64_t steps, TileChunk<V>& chunk) const {
    const bool pairs = a_.cols % 2 == 0;
    const int64_t step = pairs ? a_.cols / 2 : a_.cols;
    const int64_t count = (pairs ? V::kTilePairs : V::kTileInputs) * steps;
    uint32_t* next = chunk.rows();
    uint32_t* const end = next + count;
    for (int64_t block = a_.offsets[row]; block < a_.offsets[row + 1]; ++block) {
      const uint32_t first = (uint32_t)(a_.columns[block] * step);
      for (int64_t j = 0; j < step; ++j) *next++ = first + (uint32_t)j;
    }
    // The last tile is filled up with the row of zeros that ends a panel.
    const int64_t zeros = whole_tiles(a_.padded_in_features());
    while (next < end) *next++ = (uint32_t)(pairs ? zeros / 2 : zeros);
    return chunk.keep_rows(count);
  }

  // Calls body(window) for each tile of inputs that a block row has weights in.
  template <class Body>
  void for_each_window(int64_t row, const Body& body) const {
    int64_t next = 0;
    for (int64_t block = a_.offsets[row]; block < a_.offsets[row + 1]; ++block) {
      const int64_t input = a_.columns[block] * a_.cols;
      const int64_t end = ceil_div(input + a_.cols, V::kTileInputs);
      for (next = max64(next, input / V::kTileInputs); next < end; ++next) body(next);
    }
  }
  int64_t windows_of(int64_t row) const {
    int64_t count = 0;
    for_each_window(row, [&](int64_t) { ++count; });
    return count;
  }
  const uint32_t* list_windows(int64_t row, int64_t steps, TileChunk<V>& chunk) const {
    uint32_t* next = chunk.rows();
    for_each_window(row, [&](int64_t window) { *next++ = (uint32_t)window; });
    return chunk.keep_rows(steps);
  }

  // A tile [pairs][outputs][2], the other way round.
  static SPARSEKERN_INLINE void turn(const typename V::Pairs pairs[16], BFloat16* tile) {
    typename V::Pairs outputs[16];
    V::transpose(pairs, outputs);
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) V::store(tile + i * V::kTileInputs, outputs[i]);
  }

  void pack_gathered(const BFloat16* w, int64_t inputs, int64_t steps, BFloat16* tile) const {
    const auto pairing = V::pairing_of(16);
    const int64_t rows = a_.rows;
    for (int64_t step = 0; step < steps; ++step, tile += V::kTileWeights) {
      typename V::Pairs pairs[16];
      if (inputs >= V::kTileInputs) {
        SPARSEKERN_UNROLL
        for (int i = 0; i < 16; ++i, w += 2 * rows) {
          pairs[i] = V::paired(V::load_two(w, w + rows), pairing);
        }
      } else {
        for (int i = 0; i < 16; ++i, w += 2 * rows) {
          const int64_t left = inputs - 2 * i;
          pairs[i] = left > 0 ? V::paired(V::load_two(w, left > 1 ? w + rows : nullptr), pairing)
                              : V::zero_pairs();
        }
      }
      inputs -= V::kTileInputs;
      turn(pairs, tile);
    }
  }

  // The weights of a strip, each input where it lies among all: [inputs][16 outputs].
  void spread(const BFloat16* w, int64_t row, BFloat16* dense) const {
    const int64_t rows = a_.rows, cols = a_.cols;
    for (int64_t block = a_.offsets[row]; block < a_.offsets[row + 1]; ++block) {
      BFloat16* to = dense + a_.columns[block] * cols * V::kTileOutputs;
      for (int64_t j = 0; j < cols; ++j, w += rows, to += V::kTileOutputs) {
        __builtin_memcpy(to, w, V::kTileOutputs * sizeof(BFloat16));
      }
    }
  }
  static void pack_windows(BFloat16* dense, const uint32_t* windows, int64_t steps,
                           BFloat16* tile) {
    const auto pairing = V::pairing_of(16);
    for (int64_t step = 0; step < steps; ++step, tile += V::kTileWeights) {
      BFloat16* const w = dense + windows[step] * V::kTileWeights;
      typename V::Pairs pairs[16];
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) {
        pairs[i] = V::paired(V::load(w + 32 * i), pairing);
        V::store(w + 32 * i, V::zero_pairs());
      }
      turn(pairs, tile);
    }
  }

  const Matrix& a_;
  const bool gathers_;
};
