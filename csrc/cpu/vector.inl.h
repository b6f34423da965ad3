// Kernels for one token: a product with a vector. Included inside an ISA region, once for each ISA
// namespace.
//
//   acc[s][v] += weights[s][k][v] * splat(x[k])       S streams x NV vectors of outputs
//
// Every weight is used once, so the time is that of reading them. A core has more reads of memory
// under way when it follows several streams: block rows of one strip are cut into S parts of as
// many blocks, and walked through side by side. The strips of taller ones lie side by side in
// memory, and are dealt out to the streams in turn.

// Every `step`-th strip of consecutive block rows.
template <class V, int NV>
struct Walk {
  static constexpr int64_t kStrip = NV * V::kLanes;

  int64_t row, row_end, offset, step;
  const float* w;
  const uint16_t* column;
  int64_t blocks;  // left in this strip

  bool ended() const { return row == row_end; }

  // Moves to the next strip; false at the end.
  SPARSEKERN_INLINE bool next(const BlockMatrix& a) {
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

template <class V, int NV, int S>
struct VectorStreams {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kStrip = NV * kLanes;

  // The next `blocks` blocks of every stream.
  template <bool kSingleColumns>
  static SPARSEKERN_INLINE void add(Reg acc[S][NV], Walk<V, NV> walks[S], int64_t blocks,
                                    const BlockMatrix& a, const float* x) {
    const int64_t rows = a.rows, cols = a.cols;
    const float* w[S];
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
          const Reg token = V::splat(x + column[s][i] * (kSingleColumns ? 1 : cols) + j);
          SPARSEKERN_UNROLL
          for (int v = 0; v < NV; ++v) {
            acc[s][v] = V::fma(V::load(w[s] + at + v * kLanes), token, acc[s][v]);
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

  static SPARSEKERN_INLINE void store(const Reg acc[NV], const Walk<V, NV>& walk,
                                      const BlockMatrix& a, const LinearCall& call, float* y) {
    const int64_t output = walk.row * a.rows + walk.offset;
    SPARSEKERN_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t n = output + v * kLanes;
      const int valid = (int)max64(0, min64(kLanes, a.out_features - n));
      Reg sum = acc[v];
      if (valid == kLanes) {
        if (call.bias != nullptr) sum = V::add(sum, V::load(call.bias + n));
        V::store(y + n, sum);
      } else if (valid > 0) {
        if (call.bias != nullptr) sum = V::add(sum, V::load_first(call.bias + n, valid));
        V::store_first(y + n, sum, valid);
      }
    }
  }

  // Walks on until a stream ends. `begun` holds what the current strips have summed up so far.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, const LinearCall& call, const float* x,
                                      float* y, Walk<V, NV> walks[S], float* begun) {
    Reg acc[S][NV];
    SPARSEKERN_UNROLL
    for (int s = 0; s < S; ++s) {
      SPARSEKERN_UNROLL
      for (int v = 0; v < NV; ++v) acc[s][v] = V::load(begun + s * kStrip + v * kLanes);
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
          store(acc[s], walks[s], a, call, y);
          SPARSEKERN_UNROLL
          for (int v = 0; v < NV; ++v) acc[s][v] = V::zero();
          ended |= !walks[s].next(a);
        }
      }
      if (ended) {
        SPARSEKERN_UNROLL
        for (int s = 0; s < S; ++s) {
          SPARSEKERN_UNROLL
          for (int v = 0; v < NV; ++v) V::store(begun + s * kStrip + v * kLanes, acc[s][v]);
        }
        return;
      }
    }
  }
};

template <class V, class Wide, int NV>
struct VectorFamily {
  using Matrix = BlockMatrix;
  static constexpr KernelFamily kFamily = KernelFamily::kVector;
  static constexpr int64_t kPanel = 1;
  static constexpr int kStreams = 4;
  static constexpr int64_t kStrip = NV * V::kLanes;
  static constexpr int64_t kTileOutputs = kStrip, kTileLanes = V::kLanes;

  // First of the block rows [begin, end) that has at least `blocks` blocks before it.
  static int64_t row_after(const BlockMatrix& a, int64_t begin, int64_t end, int64_t blocks) {
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
  static void run(const BlockMatrix& a, const LinearCall& call, const Share& share, const float* x,
                  float* y) {
    Walk<V, NV> walks[kStreams];
    float begun[kStreams * kStrip] = {};
    int walking = 0;
    const int64_t first = a.offsets[share.row_begin];
    const int64_t blocks = a.offsets[share.row_end] - first;
    int64_t row = share.row_begin;
    for (int s = 0; s < kStreams; ++s) {
      Walk<V, NV>& walk = walks[walking];
      if (a.rows > kStrip) {
        walk = {row, share.row_end, (s - kStreams) * kStrip, kStreams, nullptr, nullptr, 0};
      } else {
        const int64_t end = s + 1 == kStreams ? share.row_end
                                              : row_after(a, row, share.row_end,
                                                          first + blocks * (s + 1) / kStreams);
        walk = {row, end, -kStrip, 1, nullptr, nullptr, 0};
        row = end;
      }
      if (walk.next(a)) ++walking;
    }
    while (walking > 0) {
      if (walking == kStreams) {
        VectorStreams<V, NV, kStreams>::template run<kSingleColumns>(a, call, x, y, walks, begun);
      } else if (walking >= 2) {
        VectorStreams<V, NV, 2>::template run<kSingleColumns>(a, call, x, y, walks, begun);
      } else {
        VectorStreams<V, NV, 1>::template run<kSingleColumns>(a, call, x, y, walks, begun);
      }
      walking = still_walking(walks, begun, walking);
    }
  }

  // Closes the ranks of the streams that have not ended.
  static int still_walking(Walk<V, NV> walks[kStreams], float* begun, int walking) {
    int kept = 0;
    for (int s = 0; s < walking; ++s) {
      if (walks[s].ended()) continue;
      walks[kept] = walks[s];
      for (int64_t n = 0; n < kStrip; ++n) begun[kept * kStrip + n] = begun[s * kStrip + n];
      ++kept;
    }
    return kept;
  }

  // Token by token, for a caller that names this kernel and has several.
  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    const int64_t padded = a.padded_in_features();
    const int64_t output = share.row_begin * a.rows;
    const int64_t outputs = min64(share.row_end * a.rows, a.out_features) - output;
    for (int64_t t = share.token_begin; t < share.token_end; ++t) {
      const float* x = call.x + t * call.x_stride;
      float* y = call.y + t * call.y_stride;
      if (padded != a.in_features) {
        __builtin_memcpy(share.scratch, x, a.in_features * sizeof(float));
        for (int64_t k = a.in_features; k < padded; ++k) share.scratch[k] = 0.0f;
        x = share.scratch;
      }
      if (a.cols == 1) {
        run<true>(a, call, share, x, y);
      } else {
        run<false>(a, call, share, x, y);
      }
      if (call.activation != Activation::kNone) {
        activate_rows<Wide>(y + output, call.y_stride, 1, outputs, call.activation);
      }
    }
  }
};
