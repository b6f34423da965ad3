// Kernels that hold a vector of outputs: block rows that are a multiple of the strip, NV vectors.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[t][v] += weights[k][v] * splat(x[k][t])       T tokens x NV vectors of outputs
//
// For each input: NV weight loads, T splats, T * NV multiply-adds. With NV = 2 a splat serves two of
// them, so loads stay at (T + 2) / 2T of the multiply-adds. y is written row-major from registers,
// and holds the partial sums between K-tiles.

template <class V, class Packer, int NV, int T>
struct OutputsStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  // Few tokens leave few accumulators; further copies of them hide the latency of the additions.
  static constexpr int kCopies = NV * T >= 8 ? 1 : (8 + NV * T - 1) / (NV * T);

  struct Sums {
    Reg at[kCopies][T][NV];
  };

  static SPARSEKERN_INLINE void step(Reg acc[T][NV], const float* w, const float* x) {
    Reg weight[NV];
    SPARSEKERN_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = V::load(w + v * kLanes);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const Reg token = V::splat(x + t);
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) acc[t][v] = V::fma(weight[v], token, acc[t][v]);
    }
  }

  // Blocks of one input: the index is the input.
  static SPARSEKERN_INLINE void add_vectors(Sums& sums, const float* w, int64_t w_step,
                                            const uint16_t* columns, int64_t count,
                                            const float* panel) {
    int64_t i = 0;
    for (; i + kCopies <= count; i += kCopies) {
      SPARSEKERN_UNROLL
      for (int u = 0; u < kCopies; ++u) {
        step(sums.at[u], w + u * w_step, panel + (int64_t)columns[i + u] * T);
      }
      w += kCopies * w_step;
    }
    if (kCopies > 1) {
      for (; i < count; ++i, w += w_step) step(sums.at[0], w, panel + (int64_t)columns[i] * T);
    }
  }

  static SPARSEKERN_INLINE void add_blocks(Sums& sums, const float* w, int64_t w_step,
                                           const uint16_t* columns, int64_t count, int64_t cols,
                                           const float* panel) {
    for (int64_t i = 0; i < count; ++i) {
      const float* x = panel + columns[i] * cols * T;
      int64_t j = 0;
      for (; j + kCopies <= cols; j += kCopies) {
        SPARSEKERN_UNROLL
        for (int u = 0; u < kCopies; ++u) step(sums.at[u], w + u * w_step, x + u * T);
        w += kCopies * w_step;
        x += kCopies * T;
      }
      if (kCopies > 1) {
        for (; j < cols; ++j, w += w_step, x += T) step(sums.at[0], w, x);
      }
    }
  }

  // Blocks [begin, end) of one block row, for the strip of outputs that starts `offset` rows into
  // it. `valid` outputs exist; the others are the block's padding.
  static void add_tile(const BlockMatrix& a, int64_t begin, int64_t end, int64_t offset,
                       const float* panel, const float* bias, float* y, int64_t y_stride,
                       int64_t valid, bool first_tile) {
    const bool whole = valid >= NV * kLanes;
    Sums sums;
    SPARSEKERN_UNROLL
    for (int u = 0; u < kCopies; ++u) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t) {
        SPARSEKERN_UNROLL
        for (int v = 0; v < NV; ++v) {
          const float* from = first_tile ? bias : y + t * y_stride;
          sums.at[u][t][v] = u > 0 || from == nullptr ? V::zero()
                             : whole                  ? V::load(from + v * kLanes)
                                     : V::load_first(from + v * kLanes, part(valid, v));
        }
      }
    }
    const float* w = a.values + begin * a.cols * a.rows + offset;
    if (a.cols == 1) {
      add_vectors(sums, w, a.rows, a.columns + begin, end - begin, panel);
    } else {
      add_blocks(sums, w, a.rows, a.columns + begin, end - begin, a.cols, panel);
    }
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        Reg sum = sums.at[0][t][v];
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) sum = V::add(sum, sums.at[u][t][v]);
        float* to = y + t * y_stride + v * kLanes;
        if (whole) {
          V::store(to, sum);
        } else {
          V::store_first(to, sum, part(valid, v));
        }
      }
    }
  }

  // How many of `valid` outputs fall into vector v.
  static SPARSEKERN_INLINE int part(int64_t valid, int v) {
    return (int)max64(0, min64(kLanes, valid - v * kLanes));
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const float* panel, float* y) {
    for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
      for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row) {
        const int32_t* split = chunk.of_row(row) + tile;
        if (tile > 0 && split[0] == split[1]) continue;
        for (int64_t offset = 0; offset < a.rows; offset += NV * kLanes) {
          const int64_t output = row * a.rows + offset;
          if (output >= a.out_features) break;
          add_tile(a, split[0], split[1], offset, panel, call.bias ? call.bias + output : nullptr,
                   y + output - chunk.row_begin * a.rows, call.y_stride, a.out_features - output,
                   tile == 0);
        }
      }
    }
  }
};

// V: vector of outputs. Packer: the ISA's widest vector. kMost: most tokens in a panel.
template <class V, class Packer, int NV, int kMost>
struct OutputsFamily {
  using Vec = Packer;
  static_assert(kMost <= Packer::kLanes, "a panel is packed in one strip");
  static constexpr int64_t kPanel = kMost;
  static constexpr int64_t kTileFloats = 6 * 1024;  // 24 KiB of a 32 KiB L1
  static constexpr int64_t kCellFloats = 0;
  static constexpr int64_t kCellOutputs = INT64_MAX;
  static constexpr int64_t kSlack = Packer::kLanes;

  static constexpr int64_t width(int64_t tokens) { return tokens; }

  static void pack(const float* x, int64_t stride, int tokens, int64_t inputs, float* panel) {
    pack_strip<Packer>(x, stride, tokens, inputs, panel, tokens);
  }

  template <int T>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const float* panel, int tokens, float* y) {
    if (tokens == T) {
      OutputsStrip<V, Packer, NV, T>::run(a, call, chunk, panel, y);
    } else if constexpr (T > 1) {
      run_exact<T - 1>(a, call, chunk, panel, tokens, y);
    }
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const float* panel, int tokens, float* y, float*) {
    run_exact<kMost>(a, call, chunk, panel, tokens, y);
  }
};
