// Kernels that hold vectors of tokens: R outputs at a time.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[r][m] += splat(weight[k][r]) * x[k][m]        R outputs x MV vectors of tokens
//
// For each input: MV activation loads, R splats, R * MV multiply-adds. The panel of activations
// lies in L2, and no hardware foresees which of its rows the columns ask for; a core that looks
// ahead less far than L2 takes to answer has them fetched by the columns of blocks that come later.
// The sums of a cache line of outputs are collected in `cells` [outputs][tokens] and then
// transposed into, or onto, row-major y.

// kInputsAhead: how many inputs ahead the panel's rows are fetched; 0 for a core that looks far
// enough ahead itself, and has loads left to fetch weights.
template <class V, int R, int MV, int64_t kInputsAhead>
struct TokensStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;
  static constexpr int64_t kWeightsAhead = 8;  // in inputs

  static SPARSEKERN_INLINE void fetch(const float* x) {
    SPARSEKERN_UNROLL
    for (int i = 0; i < kWidth; i += kLine) prefetch(x + i);
  }

  static SPARSEKERN_INLINE void step(Reg acc[R][MV], const float* w, const float* x) {
    Reg token[MV];
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) token[m] = V::load(x + m * kLanes);
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Reg weight = V::splat(w + r);
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = V::fma(weight, token[m], acc[r][m]);
    }
  }

  // Blocks [begin, end) of one block row, outputs [offset, offset + R) of it. Up to block
  // `foreseen` there is one that comes `ahead` blocks later: in this row, or the next one. (In a
  // narrow K-tile it may be of another tile, and is fetched in vain.)
  template <bool kSingleColumns>
  static SPARSEKERN_INLINE void add(const BlockMatrix& a, int64_t begin, int64_t end,
                                    int64_t foreseen, int64_t ahead, int64_t offset,
                                    const float* panel, LinesAhead<float>& lines, float* cells) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = V::zero();
    }
    const int64_t rows = a.rows, cols = kSingleColumns ? 1 : a.cols;
    // The rows of a block lie one after the other, which the hardware does foresee: the first few
    // of the block to come are enough.
    const int64_t lead = min64(cols, kInputsAhead);
    const float* w = a.values + begin * cols * rows + offset;
    const uint16_t* column = a.columns + begin;
    const uint16_t* const last = a.columns + end;
    const uint16_t* const last_foreseen = a.columns + foreseen;
    for (; column < last; ++column) {
      const float* x = panel + *column * cols * kWidth;
      const float* later = column < last_foreseen ? panel + column[ahead] * cols * kWidth : x;
      for (int64_t j = 0; j < cols; ++j, w += rows, x += kWidth) {
        if (lines.left() > 0) lines.fetch();
        if constexpr (kInputsAhead == 0) {
          prefetch(w + kWeightsAhead * rows);
        } else if (j < lead) {
          fetch(later + j * kWidth);
        }
        step(acc, w, x);
      }
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) V::store(cells + r * kWidth + m * kLanes, acc[r][m]);
    }
  }

  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, const LinearCall& call,
                                      const Chunk& chunk, const float* panel, int64_t tokens,
                                      float* y) {
    alignas(64) float cells[kLine * kWidth];
    const int32_t* span = chunk.spans;
    const int64_t first_output = chunk.row_begin * a.rows;
    const int64_t outputs_end = min64(chunk.row_end * a.rows, a.out_features);
    const int64_t ahead = max64(1, kInputsAhead / a.cols);
    const int64_t foreseen = kInputsAhead == 0 ? 0 : max64(0, a.offsets[a.block_rows()] - ahead);
    int64_t offset = 0;  // in the block row of `span`
    for (int64_t output = first_output; output < outputs_end;) {
      // Up to the end of a cache line of y, where its rows begin with one: a tile writes none
      // twice.
      const int64_t outputs = min64(kLine - output % kLine, outputs_end - output);
      float* const line = y + (output - first_output);
      LinesAhead<float> lines(line, call.y_stride, tokens);
      for (int64_t n = 0; n < outputs; n += R) {
        add<kSingleColumns>(a, span[0], span[1], foreseen, ahead, offset, panel, lines,
                            cells + n * kWidth);
        offset += R;
        if (offset == a.rows) {
          offset = 0;
          span += 2;
        }
      }
      write_cells<V, kWidth>(cells, outputs, chunk.first_tile,
                             call.bias ? call.bias + output : nullptr, tokens, line, call.y_stride);
      output += outputs;
    }
  }
};

// kInputsAhead: as of the strip. kChunk: bytes of a chunk. kPanelFloats: most floats of a panel, a
// part of L2, which feeds MV loads for R * MV multiply-adds: partial sums cost more than what a
// smaller tile would save.
template <class V, int R, int kMostVectors, int64_t kInputsAhead, int64_t kChunk = kUsualChunk,
          int64_t kPanelFloats = kUsualPanelFloats>
struct TokensFamily {
  using Matrix = BlockMatrix;
  using Vec = V;
  static constexpr KernelFamily kFamily = KernelFamily::kTokens;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kTileOutputs = R, kTileLanes = kLanes;
  static constexpr int64_t kQuantum = kLanes;
  static constexpr int64_t kStrip = 0;  // fetches nothing ahead: packing reads x in long rows

  static constexpr int64_t kChunkBytes = kChunk;

  static int64_t most_inputs(int64_t tokens) { return kPanelFloats / width(tokens); }
  static int64_t width(int64_t tokens) { return vectors(tokens) * kLanes; }
  static int64_t vectors(int64_t tokens) { return ceil_div(tokens, kLanes); }
  static int64_t panel_floats(int64_t inputs, int64_t tokens) { return inputs * width(tokens); }

  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t padded,
                   float* panel) {
    pack_panel<V>(x, stride, tokens, inputs, padded, panel);
  }

  template <int MV>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const float* panel, int64_t tokens, float* y) {
    if (vectors(tokens) == MV) {
      using Strip = TokensStrip<V, R, MV, kInputsAhead>;
      if (a.cols == 1) {
        Strip::template run<true>(a, call, chunk, panel, tokens, y);
      } else {
        Strip::template run<false>(a, call, chunk, panel, tokens, y);
      }
    } else if constexpr (MV > 1) {
      run_exact<MV - 1>(a, call, chunk, panel, tokens, y);
    }
  }

  // panel: of input 0.
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, const Ahead&,
                  const float* panel, int64_t tokens, float* y) {
    run_exact<kMostVectors>(a, call, chunk, panel, tokens, y);
  }

  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    run_panels<TokensFamily>(a, call, share);
  }
};
