// Kernels that hold vectors of tokens: short blocks, R outputs at a time.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[r][m] += splat(weight[k][r]) * x[k][m]        R outputs x MV vectors of tokens
//
// For each input: MV activation loads, R splats, R * MV multiply-adds. The panel of activations
// lies in L2, and no hardware foresees which of its rows the columns ask for; so they are fetched
// by the columns of blocks that come later. The sums of a cache line of outputs are collected in
// `cells` [outputs][tokens] and then transposed into, or onto, row-major y.

template <class V, int R, int MV>
struct TokensStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;
  // L2 answers in some 14 cycles, and an input takes 6 or more.
  static constexpr int64_t kInputsAhead = 12;

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
  static SPARSEKERN_INLINE void add(const BlockMatrix& a, int64_t begin, int64_t end,
                                    int64_t foreseen, int64_t ahead, int64_t offset,
                                    const float* panel, float* cells) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = V::zero();
    }
    const int64_t rows = a.rows, cols = a.cols;
    const float* w = a.values + begin * cols * rows + offset;
    const uint16_t* column = a.columns + begin;
    const uint16_t* const last = a.columns + end;
    const uint16_t* const last_foreseen = a.columns + min64(end, foreseen);
    if (cols == 1) {
      for (; column < last_foreseen; ++column, w += rows) {
        fetch(panel + column[kInputsAhead] * kWidth);
        step(acc, w, panel + *column * kWidth);
      }
      for (; column < last; ++column, w += rows) step(acc, w, panel + *column * kWidth);
    } else {
      // The rows of a block lie one after the other, which the hardware does foresee: the first few
      // of the block to come are enough.
      const int64_t lead = min64(cols, kInputsAhead);
      for (; column < last; ++column) {
        const float* x = panel + *column * cols * kWidth;
        for (int64_t j = lead; j < cols; ++j, w += rows, x += kWidth) step(acc, w, x);
        const float* later = column < last_foreseen ? panel + column[ahead] * cols * kWidth : x;
        for (int64_t j = 0; j < lead; ++j, w += rows, x += kWidth, later += kWidth) {
          fetch(later);
          step(acc, w, x);
        }
      }
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) V::store(cells + r * kWidth + m * kLanes, acc[r][m]);
    }
  }

  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, const LinearCall& call,
                                      const Chunk& chunk, const float* panel, int64_t tokens,
                                      float* y) {
    alignas(64) float cells[kLine * kWidth];
    const int32_t* span = chunk.spans;
    const int64_t outputs_end = min64(chunk.row_end * a.rows, a.out_features);
    const int64_t ahead = max64(1, kInputsAhead / a.cols);
    const int64_t foreseen = max64(0, a.offsets[a.block_rows()] - ahead);
    for (int64_t row = chunk.row_begin; row < chunk.row_end;) {
      const int64_t output = row * a.rows;
      // Up to the end of a cache line of y, where its rows begin with one. A line is fetched before
      // it is written, and a tile writes none twice.
      const int64_t room = kLine - output % kLine;
      float* cell = cells;
      float* const line = y + (output - chunk.row_begin * a.rows);
      for (int64_t t = 0; t < tokens; ++t) __builtin_prefetch(line + t * call.y_stride, 1, 2);
      for (; row < chunk.row_end && cell < cells + room * kWidth; ++row, span += 2) {
        for (int64_t offset = 0; offset < a.rows; offset += R, cell += R * kWidth) {
          add(a, span[0], span[1], foreseen, ahead, offset, panel, cell);
        }
      }
      write_cells<V, kWidth>(cells, min64(room, outputs_end - output), chunk.first_tile,
                             call.bias ? call.bias + output : nullptr, tokens, line, call.y_stride);
    }
  }
};

template <class V, int R, int kMostVectors>
struct TokensFamily {
  using Matrix = BlockMatrix;
  using Vec = V;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kQuantum = kLanes;
  static constexpr int64_t kStrip = 0;  // fetches nothing ahead: packing reads x in long rows

  // 192 KiB of a panel, a part of L2, which feeds MV loads for R * MV multiply-adds: partial sums
  // cost more than what a smaller tile would save.
  static Reading reading(const BlockMatrix&, const LinearCall&, int64_t tokens, double) {
    return {false, 48 * 1024 / (vectors(tokens) * kLanes)};
  }

  static int64_t vectors(int64_t tokens) { return ceil_div(tokens, kLanes); }
  static int64_t row_floats(int64_t) { return 0; }
  static int64_t panel_floats(int64_t inputs, int64_t tokens) {
    return inputs * vectors(tokens) * kLanes;
  }

  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t padded,
                   float* panel) {
    pack_panel<V>(x, stride, tokens, inputs, padded, panel);
  }

  template <int MV>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const float* panel, int64_t tokens, float* y) {
    if (vectors(tokens) == MV) {
      TokensStrip<V, R, MV>::run(a, call, chunk, panel, tokens, y);
    } else if constexpr (MV > 1) {
      run_exact<MV - 1>(a, call, chunk, panel, tokens, y);
    }
  }

  // panel: from input `begin` on.
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, const Ahead&,
                  int64_t begin, const float* panel, int64_t, int64_t tokens, float* y) {
    run_exact<kMostVectors>(a, call, chunk, panel - begin * vectors(tokens) * kLanes, tokens, y);
  }

  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    run_panels<TokensFamily>(a, call, share);
  }
};
