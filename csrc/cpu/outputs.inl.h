// Kernels that hold a vector of outputs: block rows that are a multiple of the strip, NV vectors.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[t][v] += weights[k][v] * splat(x[k][t])       T tokens x NV vectors of outputs
//
// For each input: NV weight loads, T splats, T * NV multiply-adds. The tokens of an input lie side
// by side in a panel [inputs][T], in L2. y is written row-major from registers and holds the
// partial sums between K-tiles.

// What all strips of a chunk share, for one panel.
struct StripPlan {
  const float* x;  // of input 0
  int64_t tokens;  // that exist, of the panel's
  int64_t y_stride;
  int64_t start_stride;  // of the rows that the sums begin with; 0 if they begin with the bias
  int64_t w_step, cols;
};

// kMost: tokens of a full panel.
template <class V, int NV, int T, int kMost>
struct OutputsStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kStrip = NV * kLanes;
  // Few tokens leave few accumulators; further copies of them hide the latency of the additions.
  // Panels at least half full all have as many, for the number of threads decides how full they
  // are, and must not change the order in which a sum is taken.
  static constexpr int kAccumulators = NV * (2 * T < kMost ? T : kMost);
  static constexpr int kCopies = kAccumulators >= 8 ? 1 : (8 + kAccumulators - 1) / kAccumulators;
  // Inputs by which weights are fetched ahead. The hardware follows a stream, but not one that
  // skips the other strips of tall blocks, nor from the end of a tile's share of a row to the next.
  static constexpr int kWeightsAhead = 16;
  static constexpr int kNextRowLines = 4;

  static SPARSEKERN_INLINE void step(Reg acc[T][NV], const float* w, int64_t w_step,
                                     const float* x) {
    SPARSEKERN_UNROLL
    for (int64_t n = 0; n < kStrip; n += kLine) prefetch(w + kWeightsAhead * w_step + n);
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

  // One strip of one block row. Its sums begin with the rows at `start`: partial sums, or the bias.
  // Not inlined, for the loop needs all registers; and what differs from strip to strip comes in
  // registers, for at low densities the loop is no longer than what surrounds it.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void strip(const float* w, const uint16_t* column, const uint16_t* end,
                                        float* y, const float* start, const StripPlan& plan) {
    const float* const x = plan.x;
    const int64_t y_stride = plan.y_stride, last_token = plan.tokens - 1;
    const int64_t start_stride = plan.start_stride, w_step = plan.w_step, cols = plan.cols;
    Reg acc[kCopies][T][NV];
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const float* const row = start + min64(t, last_token) * start_stride;
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        acc[0][t][v] = V::load(row + v * kLanes);
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) acc[u][t][v] = V::zero();
      }
    }
    if (kSingleColumns) {
      for (; column + kCopies <= end; column += kCopies, w += kCopies * w_step) {
        SPARSEKERN_UNROLL
        for (int u = 0; u < kCopies; ++u) step(acc[u], w + u * w_step, w_step, x + column[u] * T);
      }
      for (; kCopies > 1 && column < end; ++column, w += w_step) {
        step(acc[0], w, w_step, x + *column * T);
      }
    } else {
      for (; column < end; ++column) {
        const float* token = x + *column * cols * T;
        int64_t left = cols;
        for (; left >= kCopies; left -= kCopies, w += kCopies * w_step, token += kCopies * T) {
          SPARSEKERN_UNROLL
          for (int u = 0; u < kCopies; ++u) step(acc[u], w + u * w_step, w_step, token + u * T);
        }
        for (; kCopies > 1 && left > 0; --left, w += w_step, token += T) {
          step(acc[0], w, w_step, token);
        }
      }
    }
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t, y += y_stride) {
      if (t > last_token) break;
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        Reg sum = acc[0][t][v];
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) sum = V::add(sum, acc[u][t][v]);
        V::store(y + v * kLanes, sum);
      }
    }
  }

  // A strip of which only `valid` outputs exist: by way of whole rows.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void last_strip(const float* w, const uint16_t* column,
                                             const uint16_t* end, float* y, const float* start,
                                             StripPlan plan, int64_t valid) {
    float sums[T * kStrip] = {};
    for (int64_t t = 0; t < plan.tokens; ++t) {
      for (int64_t n = 0; n < valid; ++n) sums[t * kStrip + n] = start[t * plan.start_stride + n];
    }
    const int64_t y_stride = plan.y_stride;
    plan.y_stride = plan.start_stride = kStrip;
    strip<kSingleColumns>(w, column, end, sums, sums, plan);
    for (int64_t t = 0; t < plan.tokens; ++t) {
      for (int64_t n = 0; n < valid; ++n) y[t * y_stride + n] = sums[t * kStrip + n];
    }
  }

  // Where the blocks of one block row are that fall into the tile.
  struct Run {
    const float* w;
    const uint16_t *column, *end;

    Run(const BlockMatrix& a, const int32_t* span)
        : w(a.values + span[0] * a.cols * a.rows),
          column(a.columns + span[0]),
          end(a.columns + span[1]) {}
  };

  // All block rows of the chunk; the panel is of input 0, y at the chunk's first output.
  template <bool kSingleColumns>
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, Ahead ahead,
                  const float* panel, int64_t tokens, float* y) {
    const float zeros[kStrip] = {};
    const StripPlan plan{panel,  tokens, call.y_stride, chunk.first_tile ? 0 : call.y_stride,
                         a.rows, a.cols};
    const bool skips = !(chunk.first_tile && chunk.last_tile);
    int64_t output = chunk.row_begin * a.rows;
    const int32_t* span = chunk.spans;
    const int32_t* const last_span = span + 2 * (chunk.row_end - 1 - chunk.row_begin);
    Run next(a, span);
    for (; span <= last_span; span += 2) {
      // Found before the strip, not after it: the end of a strip's loop is mispredicted, and what
      // then has to be waited for is not hidden by any multiply-add.
      const Run run = next;
      if (span < last_span) next = Run(a, span + 2);
      if (skips) {
        for (int i = 0; i < kNextRowLines; ++i) prefetch(next.w + i * kLine);
      }
      for (int64_t offset = 0; offset < a.rows; offset += kStrip, output += kStrip, y += kStrip) {
        const int64_t valid = a.out_features - output;
        if (valid <= 0) return;
        ahead.fetch_some();
        const float* start = !chunk.first_tile      ? y
                             : call.bias == nullptr ? zeros
                                                    : call.bias + output;
        if (valid >= kStrip) {
          strip<kSingleColumns>(run.w + offset, run.column, run.end, y, start, plan);
        } else {
          last_strip<kSingleColumns>(run.w + offset, run.column, run.end, y, start, plan, valid);
        }
      }
    }
  }
};

// V: vector of outputs, Wide: the ISA's widest vector, Four: one of four. kMost: most tokens of a
// panel, kWhole: it has a multiple of so many. kChunk: bytes of a chunk.
template <class V, class Wide, class Four, int NV, int kMost, int kWhole,
          int64_t kChunk = kUsualChunk>
struct OutputsFamily {
  using Matrix = BlockMatrix;
  using Vec = Wide;
  static constexpr KernelFamily kFamily = KernelFamily::kOutputs;
  static constexpr int64_t kPanel = kMost;
  static constexpr int64_t kQuantum = kWhole;
  static constexpr int64_t kChunkBytes = kChunk;
  static constexpr int64_t kStrip = NV * V::kLanes;
  static constexpr int64_t kTileOutputs = kStrip, kTileLanes = V::kLanes;

  // In a deeper tile a low density leaves a chunk so few block rows that hardly any of them asks
  // for what another has brought to L2.
  static int64_t most_inputs(int64_t) { return 1536; }
  static int64_t width(int64_t tokens) { return ceil_div(tokens, kWhole) * kWhole; }
  // What the last vector of a panel has beyond the width needs room too.
  static int64_t panel_floats(int64_t inputs, int64_t tokens) {
    return ceil_div(inputs * width(tokens) + Four::kLanes, kLine) * kLine;
  }

  // The tokens from `first` on, as many as P has lanes.
  template <class P>
  static void pack_tokens(const float* x, int64_t stride, int64_t first, int64_t tokens,
                          int64_t inputs, float* panel) {
    static_assert(kWhole <= Four::kLanes, "no vector of a panel is without tokens");
    pack_strip<P>(x + first * stride, stride, (int)min64(P::kLanes, tokens - first), inputs,
                  panel + first, width(tokens));
  }

  // From the last tokens to the first: what a vector has beyond the width lies where the first
  // tokens of the next input belong, and they overwrite it.
  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t padded,
                   float* panel) {
    const int64_t all = width(tokens), wide = all / Wide::kLanes * Wide::kLanes;
    for (int64_t t = wide + ceil_div(all - wide, Four::kLanes) * Four::kLanes; t > wide;) {
      t -= Four::kLanes;
      pack_tokens<Four>(x, stride, t, tokens, inputs, panel);
    }
    for (int64_t t = wide; t > 0;) {
      t -= Wide::kLanes;
      pack_tokens<Wide>(x, stride, t, tokens, inputs, panel);
    }
    for (int64_t i = inputs * all; i < padded * all; ++i) panel[i] = 0.0f;
  }

  template <int T>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const Ahead& ahead, const float* panel, int64_t tokens, float* y) {
    if (width(tokens) != T) {
      if constexpr (T > kWhole) run_exact<T - kWhole>(a, call, chunk, ahead, panel, tokens, y);
    } else if (a.cols == 1) {
      OutputsStrip<V, NV, T, kMost>::template run<true>(a, call, chunk, ahead, panel, tokens, y);
    } else {
      OutputsStrip<V, NV, T, kMost>::template run<false>(a, call, chunk, ahead, panel, tokens, y);
    }
  }

  // panel: of input 0.
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const Ahead& ahead, const float* panel, int64_t tokens, float* y) {
    run_exact<kMost>(a, call, chunk, ahead, panel, tokens, y);
  }

  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    run_panels<OutputsFamily>(a, call, share);
  }
};
