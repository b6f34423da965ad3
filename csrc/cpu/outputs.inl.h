// Kernels that hold a vector of outputs: block rows that are a multiple of the strip, NV vectors.
// Included inside an ISA region, once for each ISA namespace.
//
//   acc[t][v] += weights[k][v] * splat(x[t][k])       T tokens x NV vectors of outputs
//
// For each input: NV weight loads, T splats, T * NV multiply-adds. With NV = 2 a splat serves two
// of them, so loads stay at (T + 2) / 2T of the multiply-adds. y is written row-major from
// registers and holds the partial sums between K-tiles.

// What all strips of a chunk share, for one panel.
struct StripPlan {
  const float* x;  // of input 0
  int64_t x_stride, y_stride;
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
  // Row pointers are kept for every fourth token; the others are reached by scaled offsets.
  static constexpr int kGroup = 4;
  static constexpr int kGroups = (T + kGroup - 1) / kGroup;
  // Inputs by which weights are fetched ahead. The hardware follows a stream, but not one that
  // skips the other strips of tall blocks, nor from the end of a tile's share of a row to the next.
  static constexpr int kWeightsAhead = 6;
  static constexpr int kNextRowLines = 4;

  static SPARSEKERN_INLINE void step(Reg acc[T][NV], const float* w, int64_t w_step,
                                     const float* const x[kGroups], int64_t x_stride, int64_t k) {
    prefetch(w + kWeightsAhead * w_step);
    Reg weight[NV];
    SPARSEKERN_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = V::load(w + v * kLanes);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const Reg token = V::splat(x[t / kGroup] + k + (t % kGroup) * x_stride);
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
    const int64_t x_stride = plan.x_stride, y_stride = plan.y_stride;
    const int64_t start_stride = plan.start_stride, w_step = plan.w_step, cols = plan.cols;
    const float* x[kGroups];
    SPARSEKERN_UNROLL
    for (int g = 0; g < kGroups; ++g) x[g] = plan.x + g * kGroup * x_stride;
    Reg acc[kCopies][T][NV];
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        acc[0][t][v] = V::load(start + t * start_stride + v * kLanes);
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) acc[u][t][v] = V::zero();
      }
    }
    if (kSingleColumns) {
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
          for (int u = 0; u < kCopies; ++u) {
            step(acc[u], w + u * w_step, w_step, x, x_stride, k + u);
          }
        }
        for (; kCopies > 1 && k < last; ++k, w += w_step) {
          step(acc[0], w, w_step, x, x_stride, k);
        }
      }
    }
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) {
        Reg sum = acc[0][t][v];
        SPARSEKERN_UNROLL
        for (int u = 1; u < kCopies; ++u) sum = V::add(sum, acc[u][t][v]);
        V::store(y + t * y_stride + v * kLanes, sum);
      }
    }
  }

  // A strip of which only `valid` outputs exist: by way of whole rows.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void last_strip(const float* w, const uint16_t* column,
                                             const uint16_t* end, float* y, const float* start,
                                             StripPlan plan, int64_t valid) {
    float sums[T * kStrip] = {};
    for (int t = 0; t < T; ++t) {
      for (int64_t n = 0; n < valid; ++n) sums[t * kStrip + n] = start[t * plan.start_stride + n];
    }
    const int64_t y_stride = plan.y_stride;
    plan.y_stride = plan.start_stride = kStrip;
    strip<kSingleColumns>(w, column, end, sums, sums, plan);
    for (int t = 0; t < T; ++t) {
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

  // All block rows of the chunk; x is of input 0, y at the chunk's first output.
  template <bool kSingleColumns>
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk, Ahead ahead,
                  const float* x, int64_t x_stride, float* y) {
    const float zeros[kStrip] = {};
    const StripPlan plan{x,      x_stride, call.y_stride, chunk.first_tile ? 0 : call.y_stride,
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

// V: vector of outputs. Wide: the ISA's widest vector. kMost: most tokens at once.
template <class V, class Wide, int NV, int kMost>
struct OutputsFamily {
  using Matrix = BlockMatrix;
  using Vec = Wide;
  static constexpr KernelFamily kFamily = KernelFamily::kOutputs;
  static constexpr int64_t kPanel = kMost;
  static constexpr int64_t kQuantum = 1;
  static constexpr int64_t kStrip = NV * V::kLanes;
  static constexpr int64_t kTileOutputs = kStrip, kTileLanes = V::kLanes;
  // Rows read in place stay in L2; longer ones leave so few block rows to a chunk that x is read
  // from afar again and again.
  static constexpr int64_t kMostInputs = 3 * 1024;
  static constexpr int64_t kNearFloats = 6 * 1024;  // rows stay in an L1 of 32 KiB
  static constexpr int64_t kTileFloats = 4608;      // copied rows leave room for weights and y

  // The hardware, which fetches neighbours of what is read, brings the right lines if at least so
  // many of them are asked for.
  static constexpr double kFollowed = 0.4;

  // Whether rows are as well read where they are as from a copy in L1.
  static bool worth_in_place(const BlockMatrix& a, int64_t floats) {
    if (floats <= kNearFloats) return true;
    const double line_use = a.density * kLine;
    const int64_t together = min64(a.cols, kLine);
    // A line brought from L2 should serve a strip with three inputs at least.
    if (floats <= 2 * kNearFloats) return line_use >= 3 || together >= 3;
    // From farther away the hardware must have it ready; and the strips of tall blocks would ask
    // for it again and again.
    return a.rows <= kStrip && line_use >= 3 && line_use >= kFollowed * (double)together;
  }

  // Rows are read where they are if that is worth it, unless blocks reach over their end, or there
  // are more rows than an 8-way cache has ways for and they lie a multiple of 4 KiB apart, where
  // one input of all tokens competes for the same cache sets.
  // Otherwise a tile of them is copied, side by side in L1.
  static Reading reading(const BlockMatrix& a, const LinearCall& call, int64_t tokens) {
    const bool crowded = tokens > 8 && call.x_stride % 1024 == 0;
    const bool in_place =
        a.in_features % a.cols == 0 && !crowded && worth_in_place(a, a.in_features * tokens);
    return in_place ? Reading{true, kMostInputs} : Reading{false, kTileFloats / tokens};
  }

  // An odd number of cache lines: rows do not compete for the same cache sets.
  static int64_t row_floats(int64_t inputs) { return (ceil_div(inputs, kLine) | 1) * kLine; }
  static int64_t panel_floats(int64_t inputs, int64_t tokens) {
    return row_floats(inputs) * tokens;
  }

  static void pack(const float* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t padded,
                   float* panel) {
    const int64_t row = row_floats(padded);
    for (int64_t t = 0; t < tokens; ++t, x += stride, panel += row) {
      int64_t k = 0;
      for (; k + Wide::kLanes <= inputs; k += Wide::kLanes)
        Wide::store(panel + k, Wide::load(x + k));
      for (; k < inputs; ++k) panel[k] = x[k];
      for (; k < padded; ++k) panel[k] = 0.0f;
    }
  }

  template <int T>
  static void run_exact(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                        const Ahead& ahead, const float* x, int64_t x_stride, int64_t tokens,
                        float* y) {
    if (tokens != T) {
      if constexpr (T > 1) run_exact<T - 1>(a, call, chunk, ahead, x, x_stride, tokens, y);
    } else if (a.cols == 1) {
      OutputsStrip<V, NV, T, kMost>::template run<true>(a, call, chunk, ahead, x, x_stride, y);
    } else {
      OutputsStrip<V, NV, T, kMost>::template run<false>(a, call, chunk, ahead, x, x_stride, y);
    }
  }

  // x: from input `begin` on.
  static void run(const BlockMatrix& a, const LinearCall& call, const Chunk& chunk,
                  const Ahead& ahead, int64_t begin, const float* x, int64_t x_stride,
                  int64_t tokens, float* y) {
    run_exact<kMost>(a, call, chunk, ahead, x - begin, x_stride, tokens, y);
  }

  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    run_panels<OutputsFamily>(a, call, share);
  }
};
