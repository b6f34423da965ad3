// Kernels for 2:4 and few tokens: vectors of weights, whose inputs a shuffle picks from their
// groups. Included inside an ISA region, once for each ISA namespace.
//
//   acc[g][t] += weights[g] * pick(x[t], positions[g])      G pairs of rows x T tokens
//
// The order of fragments puts the two weights that the rows g and g + 8 keep of a group side by
// side, so that four lanes pick from the four inputs of one group, for two rows. Every weight is
// loaded once, as it lies in memory: for one token that is the time it takes.

// x in the order of the values: of 32 inputs, the groups 0 4 1 5 2 6 3 7.
static void order_groups(const float* x, int64_t inputs, int64_t padded, float* ordered) {
  for (int64_t k = 0; k < padded; k += 4) {
    const int64_t group = k / 4 % 8;
    float* to = ordered + k / 32 * 32 + (group % 4 * 2 + group / 4) * 4;
    for (int64_t i = 0; i < 4; ++i) to[i] = k + i < inputs ? x[k + i] : 0.0f;
  }
}

// G pairs of rows of a row tile, T tokens.
template <class V, int G, int T>
struct PicksStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kVectors = 32 / kLanes;  // of the values of one g in a tile
  static constexpr int64_t kTileValues = 256, kTileBytes = 64;
  // Fetched ahead by 4 KiB, which memory takes to answer. Several streams side by side, by row
  // tiles or within a row, were slower.
  static constexpr int64_t kTilesAhead = 4;

  template <int v>
  static SPARSEKERN_INLINE void step(Reg acc[G][T], const float* w,
                                     const typename V::Picks positions[G], const float* x,
                                     int64_t x_stride) {
    typename V::Index index[G];
    SPARSEKERN_UNROLL
    for (int g = 0; g < G; ++g) index[g] = V::template index<v>(positions[g]);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const Reg groups = V::load(x + t * x_stride + v * kLanes);
      SPARSEKERN_UNROLL
      for (int g = 0; g < G; ++g) {
        const Reg weights = V::load(w + g * 32 + v * kLanes);
        acc[g][t] = V::fma(weights, V::pick(groups, index[g]), acc[g][t]);
      }
    }
    if constexpr (v + 1 < kVectors) step<v + 1>(acc, w, positions, x, x_stride);
  }

  static SPARSEKERN_INLINE void add_tile(Reg acc[G][T], const float* w, const uint8_t* p,
                                         const float* x, int64_t x_stride) {
    typename V::Picks positions[G];
    SPARSEKERN_UNROLL
    for (int g = 0; g < G; ++g) {
      positions[g] = V::picks(p + g * 8);
      prefetch(w + kTilesAhead * kTileValues + g * 32);
      prefetch(w + kTilesAhead * kTileValues + g * 32 + kLine);
    }
    __builtin_prefetch(p + kTilesAhead * kTileBytes);
    step<0>(acc, w, positions, x, x_stride);
  }

  // The pairs of rows g and g + 8, g in [0, G) from where `w` and `p` begin: sums [G][T][2].
  static SPARSEKERN_NOINLINE void run(const float* w, const uint8_t* p, int64_t tiles,
                                      const float* x, int64_t x_stride, float* sums) {
    Reg acc[G][T];
    SPARSEKERN_UNROLL
    for (int g = 0; g < G; ++g) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t) acc[g][t] = V::zero();
    }
    for (int64_t tile = 0; tile < tiles; ++tile, w += kTileValues, p += kTileBytes, x += 32) {
      add_tile(acc, w, p, x, x_stride);
    }
    SPARSEKERN_UNROLL
    for (int g = 0; g < G; ++g) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; ++t) {
        float lane[kLanes];
        V::store(lane, acc[g][t]);
        for (int row = 0; row < 2; ++row) {
          float sum = 0.0f;
          for (int l = 0; l < kLanes; l += 4) sum += lane[l + 2 * row] + lane[l + 2 * row + 1];
          sums[(g * T + t) * 2 + row] = sum;
        }
      }
    }
  }
};

template <class V>
struct PicksFamily {
  // A shuffle and a multiply-add for each vector of weights and token: from here on vectors of
  // tokens take less.
  static constexpr int64_t kMostTokens = 11;

  // A row tile, T tokens: as many pairs of rows at a time as make eight sums.
  template <int T>
  static void run_tile(const NMMatrix& a, const LinearCall& call, int64_t row_tile, const float* x,
                       int64_t x_stride, float* y) {
    constexpr int G = 8 / T;
    const int64_t tiles = a.group_tiles();
    for (int g0 = 0; g0 < 8; g0 += G) {
      float sums[G * T * 2];
      PicksStrip<V, G, T>::run(a.values + row_tile * tiles * 256 + g0 * 32,
                               a.positions + row_tile * tiles * 64 + g0 * 8, tiles, x, x_stride,
                               sums);
      const float* sum = sums;
      for (int g = g0; g < g0 + G; ++g) {
        for (int t = 0; t < T; ++t) {
          for (int pair = 0; pair < 2; ++pair, ++sum) {
            const int64_t output = row_tile * 16 + g + 8 * pair;
            if (output >= a.out_features) continue;
            y[t * call.y_stride + output] = *sum + (call.bias == nullptr ? 0 : call.bias[output]);
          }
        }
      }
    }
  }

  static void run_share(const NMMatrix& a, const LinearCall& call, const Share& share) {
    const int64_t tokens = share.token_end - share.token_begin, stride = a.padded_in_features();
    float* const ordered = share.scratch;
    const float* const x = call.x + share.token_begin * call.x_stride;
    float* const y = call.y + share.token_begin * call.y_stride;
    for (int64_t t = 0; t < tokens; ++t) {
      order_groups(x + t * call.x_stride, a.in_features, stride, ordered + t * stride);
    }
    // Tokens inside: weights come from memory once.
    for (int64_t row_tile = share.row_begin; row_tile < share.row_end; ++row_tile) {
      int64_t t = 0;
      for (; t + 4 <= tokens; t += 4) {
        run_tile<4>(a, call, row_tile, ordered + t * stride, stride, y + t * call.y_stride);
      }
      if (t + 2 <= tokens) {
        run_tile<2>(a, call, row_tile, ordered + t * stride, stride, y + t * call.y_stride);
        t += 2;
      }
      if (t < tokens) {
        run_tile<1>(a, call, row_tile, ordered + t * stride, stride, y + t * call.y_stride);
      }
    }
    if (call.activation != Activation::kNone) {
      const int64_t output = share.row_begin * 16;
      activate_rows<V>(y + output, call.y_stride, tokens,
                       min64(share.row_end * 16, a.out_features) - output, call.activation);
    }
  }
};
