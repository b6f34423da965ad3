// Kernels that hold a vector of outputs: block rows that are a multiple of the strip, NV vectors.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[t][v] += weights[k][v] * splat(x[t][k])       T tokens x NV vectors of outputs
//
// For each input: NV weight loads, T splats, T * NV multiply-adds. With NV = 2 a splat serves two
// of them, so loads stay at (T + 2) / 2T of the multiply-adds. y is written row-major from
// registers and holds the partial sums between K-tiles. Activations are read from the caller's rows
// where that is as fast as from a packed panel (OutputsFamily::in_place).

// The activations of some tokens, and where their outputs go.
struct PanelWork {
  const float* x;
  int64_t x_stride;   // from token to token; unused if packed
  const float* bias;  // of the chunk's first output, or null
  float* y;           // at the chunk's first output
  int64_t y_stride;
};

// kMost: tokens of a full panel. kPacked: x is a panel [inputs][T]; otherwise rows x_stride apart.
template <class V, int NV, int T, int kMost, bool kPacked>
struct OutputsStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kStrip = NV * kLanes;
  // Few tokens leave few accumulators; further copies of them hide the latency of the additions.
  // Panels at least half full all have as many, for the number of threads decides how full they
  // are, and must not change the order in which a sum is taken.
  static constexpr int kAccumulators = NV * (2 * T < kMost ? T : kMost);
  static constexpr int kCopies = kAccumulators >= 8 ? 1 : (8 + kAccumulators - 1) / kAccumulators;
  // Row pointers are kept for every fourth token; the others are reached by scaled offsets.
  static constexpr int kGroup = 4;
  static constexpr int kGroups = kPacked ? 1 : (T + kGroup - 1) / kGroup;
  // Inputs by which weights are fetched ahead. The hardware follows a stream, but not one that
  // skips the other strips of tall blocks.
  static constexpr int kWeightsAhead = 6;

  static SPARSEKERN_INLINE void step(Reg acc[T][NV], const float* w, int64_t w_step,
                                     const float* const x[kGroups], int64_t x_stride, int64_t k) {
    prefetch(w + kWeightsAhead * w_step);
    Reg weight[NV];
    SPARSEKERN_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = V::load(w + v * kLanes);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const float* p = kPacked ? x[0] + k * T + t : x[t / kGroup] + k + (t % kGroup) * x_stride;
      const Reg token = V::splat(p);
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) acc[t][v] = V::fma(weight[v], token, acc[t][v]);
    }
  }

  static SPARSEKERN_INLINE void add(Reg acc[kCopies][T][NV], const float* w, int64_t w_step,
                                    const uint16_t* column, const uint16_t* end, int64_t cols,
                                    const float* const x[kGroups], int64_t x_stride) {
    if (cols == 1) {
      for (; column + kCopies <= end; column += kCopies, w += kCopies * w_step) {
        SPARSEKERN_UNROLL
        for (int u = 0; u < kCopies; ++u) {
          step(acc[u], w + u * w_step, w_step, x, x_stride, column[u]);
        }
      }
      for (; kCopies > 1 && column < end; ++column, w += w_step) {
        step(acc[0], w, w_step, x, x_stride, *column);
      }
    } else {
      for (; column < end; ++column) {
        int64_t k = *column * cols;
        const int64_t last = k + cols;
        for (; k + kCopies <= last; k += kCopies, w += kCopies * w_step) {
          SPARSEKERN_UNROLL
          for (int u = 0; u < kCopies; ++u)
            step(acc[u], w + u * w_step, w_step, x, x_stride, k + u);
        }
        for (; kCopies > 1 && k < last; ++k, w += w_step) {
          step(acc[0], w, w_step, x, x_stride, k);
        }
      }
    }
  }

  // How many of `valid` outputs fall into vector v.
  static SPARSEKERN_INLINE int part(int64_t valid, int v) {
    return (int)max64(0, min64(kLanes, valid - v * kLanes));
  }

  template <bool kWhole>
  static SPARSEKERN_INLINE void strip(const BlockMatrix& a, const PanelWork& work, bool first_tile,
                                      const float* w, const uint16_t* column, const uint16_t* end,
                                      int64_t output, int64_t valid, const float* const x[kGroups],
                                      int64_t x_stride) {
    float* y = work.y + output;
    const int64_t y_stride = work.y_stride;
    Reg acc[kCopies][T][NV];
    SPARSEKERN_UNROLL
    for (int u = 0; u < kCopies; ++u) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t) {
        SPARSEKERN_UNROLL
        for (int v = 0; v < NV; ++v) acc[u][t][v] = V::zero();
      }
    }
    if (!first_tile) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t) {
        SPARSEKERN_UNROLL
        for (int v = 0; v < NV; ++v) {
          const float* p = y + t * y_stride + v * kLanes;
          acc[0][t][v] = kWhole ? V::load(p) : V::load_first(p, part(valid, v));
        }
      }
    } else if (work.bias != nullptr) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const float* p = work.bias + output + v * kLanes;
        const Reg bias = kWhole ? V::load(p) : V::load_first(p, part(valid, v));
        SPARSEKERN_UNROLL
        for (int t = 0; t < T; ++t) acc[0][t][v] = bias;
      }
    }
    add(acc, w, a.rows, column, end, a.cols, x, x_stride);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        Reg sum = acc[0][t][v];
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) sum = V::add(sum, acc[u][t][v]);
        float* to = y + t * y_stride + v * kLanes;
        if (kWhole) {
          V::store(to, sum);
        } else {
          V::store_first(to, sum, part(valid, v));
        }
      }
    }
  }

  // All block rows of the chunk.
  static SPARSEKERN_NOINLINE void run_rows(const BlockMatrix& a, const Chunk& chunk,
                                           const PanelWork& work) {
    const float* x[kGroups];
    SPARSEKERN_UNROLL
    for (int g = 0; g < kGroups; ++g) x[g] = work.x + g * kGroup * work.x_stride;
    const int64_t x_stride = work.x_stride;
    const int32_t* span = chunk.spans;
    const int64_t rows = a.rows;
    int64_t output = 0;  // from the chunk's first one
    int64_t valid = a.out_features - chunk.row_begin * rows;
    for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row, span += 2) {
      const uint16_t* column = a.columns + span[0];
      const uint16_t* end = a.columns + span[1];
      const float* w = a.values + span[0] * a.cols * rows;
      for (int64_t offset = 0; offset < rows; offset += kStrip) {
        if (valid >= kStrip) {
          strip<true>(a, work, chunk.first_tile, w + offset, column, end, output, valid, x,
                      x_stride);
        } else if (valid > 0) {
          strip<false>(a, work, chunk.first_tile, w + offset, column, end, output, valid, x,
                       x_stride);
        }
        output += kStrip;
        valid -= kStrip;
      }
    }
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, const float* x,
                  int64_t x_stride, float* y) {
    const float* bias = call.bias == nullptr ? nullptr : call.bias + chunk.row_begin * a.rows;
    run_rows(a, chunk, {x, x_stride, bias, y, call.y_stride});
  }
};

// V: vector of outputs. Wide: the ISA's widest vector. kMost: most tokens at once.
template <class V, class Wide, int NV, int kMost>
struct OutputsFamily {
  using Vec = Wide;
  static_assert(kMost <= Wide::kLanes, "a panel is packed in one strip");
  static constexpr int64_t kPanel = kMost;
  static constexpr int64_t kQuantum = 1;
  static constexpr int64_t kSlack = Wide::kLanes;

  // Rows are read where they are, unless
  // - their end is no whole block of inputs, or
  // - they do not stay in L1 and the weights use less than three inputs of each cache line brought
  //   from L2: a packed panel then needs one or two lines for an input of all tokens, not one each,
  // - or they are more than an 8-way cache has ways for, and lie a multiple of 4 KiB apart, where
  //   one input of all tokens competes for the same cache sets.
  static bool in_place(const BlockMatrix& a, const LinearCall& call, int64_t tokens,
                       double density) {
    const double used_of_line = density * kLine > a.cols ? density * kLine : (double)a.cols;
    const bool near = a.in_features * tokens <= 6 * 1024;
    const bool crowded = tokens > 8 && call.x_stride % 1024 == 0;
    return a.in_features % a.cols == 0 && (tokens == 1 || near || used_of_line >= 3) && !crowded;
  }

  // A panel passes from L3 to L1 once for each chunk of weights; in tiles of this depth that stays
  // below one byte a cycle.
  static int64_t tile_inputs(int64_t) { return 1536; }

  static int64_t panel_floats(int64_t padded, int64_t tokens) { return padded * tokens; }

  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t padded,
                   float* panel) {
    pack_strip<Wide>(x, stride, (int)tokens, inputs, panel, tokens);
    for (int64_t i = inputs * tokens; i < padded * tokens; ++i) panel[i] = 0.0f;
  }

  template <int T>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const float* x, bool placed, int64_t tokens, float* y) {
    if (tokens != T) {
      if constexpr (T > 1) run_exact<T - 1>(a, call, chunk, x, placed, tokens, y);
    } else if (placed) {
      OutputsStrip<V, NV, T, kMost, false>::run(a, call, chunk, x, call.x_stride, y);
    } else {
      OutputsStrip<V, NV, T, kMost, true>::run(a, call, chunk, x, 0, y);
    }
  }

  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, const float* x,
                  bool placed, int64_t tokens, float* y) {
    run_exact<kMost>(a, call, chunk, x, placed, tokens, y);
  }
};
