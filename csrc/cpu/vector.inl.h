// Kernels for one token, or a few: a product with a vector, or with some side by side. Included
// inside an ISA region, once for each ISA namespace.
//
//   acc[s][t][v] += weights[s][k][v] * splat(x[k][t])       S streams x T tokens x NV vectors of
//                                                           outputs
//
// Every weight is read once, so the time is that of reading them. A core has more reads of memory
// under way when it follows several streams: block rows of one strip are cut into S parts of as
// many blocks, and walked through side by side. The strips of taller ones lie side by side in
// memory, and are dealt out to the streams in turn.

// Every `step`-th strip of consecutive block rows.
template <class Value, int64_t kStrip>
struct Walk {
  int64_t row, row_end, offset, step;
  const Value* w;
  const uint16_t* column;
  int64_t blocks;  // left in this strip

  bool ended() const { return row == row_end; }

  // Moves to the next strip; false at the end.
  SPARSEKERN_INLINE bool next(const BlockMatrixOf<Value>& a) {
    for (offset += step * kStrip; offset >= a.rows; offset -= a.rows) ++row;
    if (row >= row_end || row * a.rows + offset >= a.out_features) {
      row = row_end;
      return false;
    }
    const int64_t begin = a.offsets[row];
    w = a.values + begin * a.cols * a.rows + offset;
    column = a.columns + begin;
    blocks = a.offsets[row + 1] - begin;
    return true;
  }
};

// Where sums go: rows of outputs, a row for each token.
struct OutputRows {
  float* y;  // of output 0
  int64_t stride, tokens;
  const float* bias;  // or null
};

// Tokens side by side: so many are multiplied if one of the widths before is too narrow.
constexpr int wider(int tokens) { return tokens < 8 ? 2 * tokens : tokens + 4; }

template <class Value, class V, int NV, int T, int S>
struct VectorStreams {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kStrip = NV * kLanes;
  using StripWalk = Walk<Value, kStrip>;
  // The hardware follows the streams of one token and of two. Those of more take more time for each
  // line, and are fewer.
  static constexpr bool kFetches = T > 2;
  static constexpr int64_t kAhead = 8 * 1024 / sizeof(Value);

  // The next `blocks` blocks of every stream; x holds T tokens of each input.
  template <bool kSingleColumns>
  static SPARSEKERN_INLINE void add(Reg acc[S][T][NV], StripWalk walks[S], int64_t blocks,
                                    const BlockMatrixOf<Value>& a, const float* x) {
    const int64_t rows = a.rows, cols = a.cols;
    const Value* w[S];
    const uint16_t* column[S];
    SPARSEKERN_UNROLL
    for (int s = 0; s < S; ++s) {
      w[s] = walks[s].w;
      column[s] = walks[s].column;
    }
    int64_t at = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      for (int64_t j = 0; j < (kSingleColumns ? 1 : cols); ++j, at += rows) {
        SPARSEKERN_UNROLL
        for (int s = 0; s < S; ++s) {
          const float* token = x + (column[s][i] * (kSingleColumns ? 1 : cols) + j) * T;
          Reg weight[NV];
          SPARSEKERN_UNROLL
          for (int v = 0; v < NV; ++v) {
            if constexpr (kFetches) __builtin_prefetch(w[s] + at + v * kLanes + kAhead, 0, 2);
            weight[v] = V::load(w[s] + at + v * kLanes);
          }
          SPARSEKERN_UNROLL
          for (int t = 0; t < T; ++t) {
            const Reg input = V::splat(token + t);
            SPARSEKERN_UNROLL
            for (int v = 0; v < NV; ++v) acc[s][t][v] = V::fma(weight[v], input, acc[s][t][v]);
          }
        }
      }
    }
    SPARSEKERN_UNROLL
    for (int s = 0; s < S; ++s) {
      walks[s].w += at;
      walks[s].column += blocks;
      walks[s].blocks -= blocks;
    }
  }

  static SPARSEKERN_INLINE void store(const Reg acc[T][NV], const StripWalk& walk,
                                      const BlockMatrixOf<Value>& a, const OutputRows& sums) {
    const int64_t output = walk.row * a.rows + walk.offset;
    SPARSEKERN_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t n = output + v * kLanes;
      const int valid = (int)max64(0, min64(kLanes, a.out_features - n));
      float* y = sums.y + n;
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t, y += sums.stride) {
        if (t >= sums.tokens) break;
        Reg sum = acc[t][v];
        if (valid == kLanes) {
          if (sums.bias != nullptr) sum = V::add(sum, V::load(sums.bias + n));
          V::store(y, sum);
        } else if (valid > 0) {
          if (sums.bias != nullptr) sum = V::add(sum, V::load_first(sums.bias + n, valid));
          V::store_first(y, sum, valid);
        }
      }
    }
  }

  // Walks on until a stream ends. `begun` holds what the current strips have summed up so far.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void run(const BlockMatrixOf<Value>& a, const float* x,
                                      const OutputRows& sums, StripWalk walks[S],
                                      float begun[S][T * kStrip]) {
    Reg acc[S][T][NV];
    SPARSEKERN_UNROLL
    for (int s = 0; s < S; ++s) {
      SPARSEKERN_UNROLL
      for (int i = 0; i < T * NV; ++i) acc[s][i / NV][i % NV] = V::load(begun[s] + i * kLanes);
    }
    for (;;) {
      int64_t blocks = walks[0].blocks;
      SPARSEKERN_UNROLL
      for (int s = 1; s < S; ++s) blocks = min64(blocks, walks[s].blocks);
      add<kSingleColumns>(acc, walks, blocks, a, x);
      bool ended = false;
      SPARSEKERN_UNROLL
      for (int s = 0; s < S; ++s) {
        if (walks[s].blocks == 0) {
          store(acc[s], walks[s], a, sums);
          SPARSEKERN_UNROLL
          for (int i = 0; i < T * NV; ++i) acc[s][i / NV][i % NV] = V::zero();
          ended |= !walks[s].next(a);
        }
      }
      if (ended) {
        SPARSEKERN_UNROLL
        for (int s = 0; s < S; ++s) {
          SPARSEKERN_UNROLL
          for (int i = 0; i < T * NV; ++i) V::store(begun[s] + i * kLanes, acc[s][i / NV][i % NV]);
        }
        return;
      }
    }
  }
};

// All block rows of a share, for T tokens.
template <class Value, class V, int NV, int T, int kStreams>
struct VectorRows {
  using Matrix = BlockMatrixOf<Value>;
  static constexpr int64_t kStrip = NV * V::kLanes;
  using StripWalk = Walk<Value, kStrip>;

  // First of the block rows [begin, end) that has at least `blocks` blocks before it.
  static int64_t row_after(const Matrix& a, int64_t begin, int64_t end, int64_t blocks) {
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (a.offsets[middle] < blocks) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }

  template <bool kSingleColumns>
  static void run(const Matrix& a, int64_t row_begin, int64_t row_end, const float* x,
                  const OutputRows& sums) {
    StripWalk walks[kStreams];
    float begun[kStreams][T * kStrip] = {};
    int walking = 0;
    const int64_t first = a.offsets[row_begin];
    const int64_t blocks = a.offsets[row_end] - first;
    int64_t row = row_begin;
    for (int s = 0; s < kStreams; ++s) {
      StripWalk& walk = walks[walking];
      if (a.rows > kStrip) {
        walk = {row, row_end, (s - kStreams) * kStrip, kStreams, nullptr, nullptr, 0};
      } else {
        const int64_t end = s + 1 == kStreams
                                ? row_end
                                : row_after(a, row, row_end, first + blocks * (s + 1) / kStreams);
        walk = {row, end, -kStrip, 1, nullptr, nullptr, 0};
        row = end;
      }
      if (walk.next(a)) ++walking;
    }
    while (walking > 0) {
      if (walking == kStreams) {
        run_streams<kSingleColumns, kStreams>(a, x, sums, walks, begun);
      } else if (walking >= 2) {
        run_streams<kSingleColumns, 2>(a, x, sums, walks, begun);
      } else {
        run_streams<kSingleColumns, 1>(a, x, sums, walks, begun);
      }
      walking = still_walking(walks, begun, walking);
    }
  }

  template <bool kSingleColumns, int S>
  static SPARSEKERN_INLINE void run_streams(const Matrix& a, const float* x, const OutputRows& sums,
                                            StripWalk walks[], float begun[][T * kStrip]) {
    if constexpr (S <= kStreams) {
      VectorStreams<Value, V, NV, T, S>::template run<kSingleColumns>(a, x, sums, walks, begun);
    }
  }

  // Closes the ranks of the streams that have not ended.
  static int still_walking(StripWalk walks[kStreams], float begun[kStreams][T * kStrip],
                           int walking) {
    int kept = 0;
    for (int s = 0; s < walking; ++s) {
      if (walks[s].ended()) continue;
      walks[kept] = walks[s];
      for (int64_t n = 0; n < T * kStrip; ++n) begun[kept][n] = begun[s][n];
      ++kept;
    }
    return kept;
  }

  static void run(const Matrix& a, int64_t row_begin, int64_t row_end, const float* x,
                  const OutputRows& sums) {
    if (a.cols == 1) {
      run<true>(a, row_begin, row_end, x, sums);
    } else {
      run<false>(a, row_begin, row_end, x, sums);
    }
  }
};

// One token by NV vectors of V; up to kMost by one of Few, kSums of whose sums registers hold.
template <class V, class Wide, int NV, class Few = V, int64_t kMost = 1, int kSums = 8>
struct VectorFamily {
  using Matrix = BlockMatrix;
  static constexpr KernelFamily kFamily = KernelFamily::kVector;
  static constexpr int64_t kPanel = kMost;
  static constexpr int64_t kTileLanes = kMost > 1 ? Few::kLanes : V::kLanes;
  static constexpr int64_t kTileOutputs = kMost > 1 ? Few::kLanes : NV * V::kLanes;

  static void run_one(const Matrix& a, const Share& share, const float* x, const OutputRows& sums) {
    const int64_t padded = a.padded_in_features();
    if (padded != a.in_features) {
      pack_side_by_side<1>(x, 0, 1, a.in_features, padded, share.scratch);
      x = share.scratch;
    }
    VectorRows<float, V, NV, 1, 4>::run(a, share.row_begin, share.row_end, x, sums);
  }

  template <int T>
  static void run_few(const Matrix& a, const Share& share, const float* x, int64_t stride,
                      const OutputRows& sums) {
    if constexpr (T < kMost) {
      if (sums.tokens > T) return run_few<wider(T)>(a, share, x, stride, sums);
    }
    pack_side_by_side<T>(x, stride, sums.tokens, a.in_features, a.padded_in_features(),
                         share.scratch);
    VectorRows<float, Few, 1, T, min64(4, kSums / T)>::run(a, share.row_begin, share.row_end,
                                                           share.scratch, sums);
  }

  // A caller that names this kernel may have more tokens.
  static void run_share(const Matrix& a, const LinearCall& call, const Share& share) {
    const int64_t output = share.row_begin * a.rows;
    const int64_t outputs = min64(share.row_end * a.rows, a.out_features) - output;
    for (int64_t t = share.token_begin; t < share.token_end; t += kMost) {
      const float* x = call.x + t * call.x_stride;
      float* y = call.y + t * call.y_stride;
      const OutputRows sums{y, call.y_stride, min64(kMost, share.token_end - t), call.bias};
      if (sums.tokens == 1) {
        run_one(a, share, x, sums);
      } else if constexpr (kMost > 1) {
        run_few<2>(a, share, x, call.x_stride, sums);
      }
      if (call.activation != Activation::kNone) {
        activate_rows<Wide>(y + output, call.y_stride, sums.tokens, outputs, call.activation);
      }
    }
  }
};
