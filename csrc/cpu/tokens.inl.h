// Kernels that hold vectors of tokens: short blocks, R outputs at a time.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[r][m] += splat(weight[k][r]) * x[k][m]        R outputs x MV vectors of tokens
//
// For each input: MV activation loads, R splats, R * MV multiply-adds. Sums collect in `cells`
// [outputs of the chunk][tokens of the panel], stay there between K-tiles, and are transposed into
// row-major y with the bias once the chunk is done.

template <class V, int R, int MV>
struct TokensStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;

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

  // Blocks [begin, end) of one block row, outputs [offset, offset + R) of it.
  static void add_tile(const BlockMatrix& a, int64_t begin, int64_t end, int64_t offset,
                       const float* panel, float* cells, bool first_tile) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) {
        acc[r][m] = first_tile ? V::zero() : V::load(cells + r * kWidth + m * kLanes);
      }
    }
    const float* w = a.values + begin * a.cols * a.rows + offset;
    if (a.cols == 1) {
      for (int64_t i = begin; i < end; ++i, w += a.rows) {
        step(acc, w, panel + a.columns[i] * kWidth);
      }
    } else {
      for (int64_t i = begin; i < end; ++i) {
        const float* x = panel + a.columns[i] * a.cols * kWidth;
        for (int64_t j = 0; j < a.cols; ++j, w += a.rows, x += kWidth) step(acc, w, x);
      }
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) V::store(cells + r * kWidth + m * kLanes, acc[r][m]);
    }
  }

  static void write(const float* cells, int64_t outputs, const float* bias, int tokens, float* y,
                    int64_t y_stride) {
    for (int64_t n = 0; n < outputs; n += kLanes) {
      const int count = (int)min64(kLanes, outputs - n);
      const Reg shift = bias == nullptr ? V::zero() : V::load_first(bias + n, count);
      for (int t0 = 0; t0 < tokens; t0 += kLanes) {
        Reg row[kLanes];
        V::load_transposed(cells + n * kWidth + t0, kWidth, count, row);
        const int rows = (int)min64(kLanes, tokens - t0);
        float* to = y + t0 * y_stride + n;
        if (count == kLanes && rows == kLanes) {
          SPARSEKERN_UNROLL
          for (int t = 0; t < kLanes; ++t) V::store(to + t * y_stride, V::add(row[t], shift));
        } else {
          SPARSEKERN_UNROLL
          for (int t = 0; t < kLanes; ++t) {
            if (t < rows) V::store_first(to + t * y_stride, V::add(row[t], shift), count);
          }
        }
      }
    }
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const float* panel, int tokens, float* y, float* cells) {
    for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
      float* cell = cells;
      for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row) {
        const int32_t* split = chunk.of_row(row) + tile;
        for (int64_t offset = 0; offset < a.rows; offset += R, cell += R * kWidth) {
          if (tile > 0 && split[0] == split[1]) continue;
          add_tile(a, split[0], split[1], offset, panel, cell, tile == 0);
        }
      }
    }
    const int64_t output = chunk.row_begin * a.rows;
    const int64_t outputs = min64(chunk.row_end * a.rows, a.out_features) - output;
    write(cells, outputs, call.bias ? call.bias + output : nullptr, tokens, y, call.y_stride);
  }
};

template <class V, int R, int kMostVectors>
struct TokensFamily {
  using Vec = V;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kTileFloats = 24 * 1024;  // 96 KiB: L2 feeds MV loads for R * MV FMAs
  static constexpr int64_t kCellOutputs = 512;
  static constexpr int64_t kCellFloats = kCellOutputs * kPanel;
  static constexpr int64_t kSlack = kLanes;

  static constexpr int64_t width(int64_t tokens) { return ceil_div_lanes(tokens) * kLanes; }
  static constexpr int64_t ceil_div_lanes(int64_t tokens) { return (tokens + kLanes - 1) / kLanes; }

  static void pack(const float* x, int64_t stride, int tokens, int64_t inputs, float* panel) {
    const int64_t wide = width(tokens);
    for (int t = 0; t < tokens; t += kLanes) {
      const int strip = (int)min64(kLanes, tokens - t);
      pack_strip<V>(x + t * stride, stride, strip, inputs, panel + t, wide);
      // Lanes without a token must hold something: their sums are computed, never stored.
      for (int64_t k = inputs - inputs % kLanes; k < inputs; ++k) {
        for (int64_t lane = strip; lane < kLanes; ++lane) panel[k * wide + t + lane] = 0.0f;
      }
    }
  }

  template <int MV>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const float* panel, int tokens, float* y, float* cells) {
    if (ceil_div_lanes(tokens) == MV) {
      TokensStrip<V, R, MV>::run(a, call, chunk, panel, tokens, y, cells);
    } else if constexpr (MV > 1) {
      run_exact<MV - 1>(a, call, chunk, panel, tokens, y, cells);
    }
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const float* panel, int tokens, float* y, float* cells) {
    run_exact<kMostVectors>(a, call, chunk, panel, tokens, y, cells);
  }
};
