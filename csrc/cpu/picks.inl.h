// Kernels for n:m and few tokens: vectors of weights, whose inputs a shuffle picks from their
// groups. Included inside an ISA region, once for each ISA namespace.
//
//   acc[g][t] += weights[g] * pick(x[t], places[g])      G pairs of rows x T tokens
//
// The order of fragments puts the weights that the rows g and g + 8 keep of a group side by side,
// so that a vector picks from few groups, for two rows. Every weight is loaded once, as it lies in
// memory: for one token that is the time it takes.
//
// All tokens pass over a chunk of a row tile's weights, and over the inputs that meet it, while
// both lie in L1:
//
//   for a row tile:
//     for a chunk of its groups:
//       for T tokens:
//         for G pairs of rows:      PicksStrip::run, onto the lanes
//     add up the lanes
//
// The order in which a sum is taken does not depend on how the tokens are cut.

// Tokens in the order of the values, tile by tile: [tiles][tokens][8 m], with the groups of a tile
// in the order 0 4 1 5 2 6 3 7.
template <class Value>
static void order_groups(const Value* x, int64_t x_stride, int64_t tokens, int64_t inputs,
                         int64_t padded, int64_t m, float* ordered) {
  for (int64_t tile = 0; tile < padded; tile += 8 * m) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t place = 0; place < 8; ++place, ordered += m) {
        const int64_t begin = tile + (place % 2 * 4 + place / 2) * m;
        const Value* const from = x + t * x_stride + begin;
        for (int64_t i = 0; i < m; ++i) ordered[i] = begin + i < inputs ? widened(from[i]) : 0.0f;
      }
    }
  }
}

// Tokens for which there is room: enough for every pattern, and for bfloat16.
constexpr int64_t kMostPicked = 20;

template <int N>
struct Count {
  static constexpr int kCount = N;
};

// T tokens, G pairs of rows of a row tile.
template <class V, class Value, int kN, int kM, int G, int T>
struct PicksStrip {
  using Reg = typename V::Reg;
  using Picks = typename V::template Picks<kN, kM>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kWeights = 16 * kN;                   // of one g in a tile
  static constexpr int kBytes = 2 * kN * (kM <= 4 ? 2 : 4);  // of its positions
  static constexpr int kVectors = kWeights / kLanes;
  static constexpr int kInputs = 8 * kM;  // of a tile
  // Vectors no longer than a row's share of a group alternate between the rows.
  static constexpr int kRowSums = kN >= kLanes ? 2 : 1;
  static constexpr int kSum = kRowSums * kLanes;  // lanes that are the sum of a pair of rows

  static constexpr int64_t kChunkTiles = 64 / kM;  // 512 inputs
  // A token that is alone reads weights as memory has them, 4 KiB ahead of itself. Several read the
  // pairs of rows of a chunk one after another, and each time as much of the next chunk into L2.
  static constexpr int64_t kTilesAhead = T == 1 ? 8 / kN : kChunkTiles;
  static constexpr int kNearness = T == 1 ? 3 : 2;

  Reg acc[G][T][kRowSums];

  // The vectors v of the pairs [g, g + kPairs).
  template <int v, int g, int kPairs>
  SPARSEKERN_INLINE void add(const Value* w, const typename Picks::Places places[kPairs],
                             const float* x) {
    typename Picks::Index index[kPairs];
    Reg weights[kPairs];
    SPARSEKERN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      index[i] = Picks::template index<v>(places[i]);
      weights[i] = V::load(w + (g + i) * kWeights + v * kLanes);
    }
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) {
      const auto inputs = Picks::template inputs<v>(x + t * kInputs);
      SPARSEKERN_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        Reg& sum = acc[g + i][t][v % kRowSums];
        sum = V::fma(weights[i], Picks::pick(inputs, index[i]), sum);
      }
    }
  }

  // All vectors of the pairs [g, g + kPairs), from v on; then those of the pairs after them.
  template <int kPairs, int g = 0>
  SPARSEKERN_INLINE void add_tile(const Value* w, const uint8_t* p, const float* x) {
    typename Picks::Places places[kPairs];
    SPARSEKERN_UNROLL
    for (int i = 0; i < kPairs; ++i) places[i] = Picks::places(p + (g + i) * kBytes);
    add_vectors<0, g, kPairs>(w, places, x);
    if constexpr (g + kPairs < G) add_tile<kPairs, g + kPairs>(w, p, x);
  }

  template <int v, int g, int kPairs>
  SPARSEKERN_INLINE void add_vectors(const Value* w, const typename Picks::Places places[kPairs],
                                     const float* x) {
    add<v, g, kPairs>(w, places, x);
    if constexpr (v + 1 < kVectors) add_vectors<v + 1, g, kPairs>(w, places, x);
  }

  // The pairs of rows g and g + 8, g in [0, G) from where `w` and `p` begin, onto the lanes
  // [8][T][kSum].
  static SPARSEKERN_NOINLINE void run(const Value* w, const uint8_t* p, int64_t tiles,
                                      const float* x, int64_t x_tile, float* lanes) {
    PicksStrip sums;
    SPARSEKERN_UNROLL
    for (int i = 0; i < G * T * kRowSums; ++i) {
      sums.acc[i / kRowSums / T][i / kRowSums % T][i % kRowSums] = V::load(lanes + i * kLanes);
    }
    for (; tiles > 0; --tiles, w += 8 * kWeights, p += 8 * kBytes, x += x_tile) {
      SPARSEKERN_UNROLL
      for (int i = 0; i < G * kWeights; i += kLine * 4 / sizeof(Value)) {
        __builtin_prefetch(w + kTilesAhead * 8 * kWeights + i, 0, kNearness);
      }
      SPARSEKERN_UNROLL
      for (int i = 0; i < G * kBytes; i += 64) {
        __builtin_prefetch(p + kTilesAhead * 8 * kBytes + i, 0, kNearness);
      }
      sums.template add_tile<(T == 1 ? 1 : G)>(w, p, x);
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < G * T * kRowSums; ++i) {
      V::store(lanes + i * kLanes, sums.acc[i / kRowSums / T][i / kRowSums % T][i % kRowSums]);
    }
  }
};

template <class V, class Value, int kN, int kM>
struct PicksFamily {
  using Reg = typename V::Reg;
  using Picks = typename V::template Picks<kN, kM>;
  using Tile = PicksStrip<V, Value, kN, kM, 1, 1>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kSum = Tile::kSum;
  static constexpr int64_t kMostTokens = Picks::kMostTokens;
  static_assert(kMostTokens <= kMostPicked, "room for lanes");

  // Adds up the lanes [8][kSum] of a token, whose pairs lie `stride` apart, and writes what there
  // is of the 16 outputs.
  static SPARSEKERN_INLINE void write(const float* lanes, int64_t stride, const float bias[16],
                                      Activation activation, int64_t outputs, Value* y) {
    constexpr int kWidth = kLanes < 8 ? kLanes : 8;
    SPARSEKERN_UNROLL
    for (int g = 0; g < 8; g += kWidth) {
      Reg sums[2] = {V::zero(), V::zero()};
      SPARSEKERN_UNROLL
      for (int l = 0; l < kSum; l += kLanes) {
        Reg column[kLanes];
        V::load_transposed(lanes + g * stride + l, stride, kWidth, column);
        SPARSEKERN_UNROLL
        for (int i = 0; i < kLanes; ++i) {
          Reg& sum = sums[(l + i) / kN % 2];
          sum = V::add(sum, column[i]);
        }
      }
      for (int pair = 0; pair < 2; ++pair) {
        const int64_t n = g + 8 * pair;
        const int valid = (int)max64(0, min64(kWidth, outputs - n));
        const Reg sum = V::add(sums[pair], V::load_first(bias + n, kWidth));
        store_first<V>(y + n, activate<V>(sum, activation), valid);
      }
    }
  }

  // Some groups of a row tile, T tokens.
  template <int T>
  static void run_chunk(const Value* w, const uint8_t* p, int64_t tiles, const float* x,
                        int64_t x_tile, float* lanes) {
    constexpr int kPairs = Picks::kSums / (T * Tile::kRowSums);
    constexpr int kMostPairs = T == 1 ? 8 : 4;
    constexpr int G = kPairs < 1 ? 1 : kPairs < kMostPairs ? kPairs : kMostPairs;
    for (int g = 0; g < 8; g += G) {
      PicksStrip<V, Value, kN, kM, G, T>::run(w + g * Tile::kWeights, p + g * Tile::kBytes, tiles,
                                              x, x_tile, lanes + g * T * kSum);
    }
  }

  // Calls body(Count<T>, t) for all tokens t, T at a time.
  template <int T = Picks::kTokens, class Body>
  static void cut(int64_t tokens, const Body& body, int64_t t = 0) {
    for (; t + T <= tokens; t += T) body(Count<T>{}, t);
    if constexpr (T > 1) cut<T / 2>(tokens, body, t);
  }

  static void run_share(const NMMatrixOf<Value>& a, const CallOf<Value>& call, const Share& share) {
    const int64_t tokens = share.token_end - share.token_begin;
    const int64_t tiles = a.group_tiles(), x_tile = tokens * Tile::kInputs;
    // All of a row tile where there is no second token.
    const int64_t chunk = tokens == 1 ? tiles : Tile::kChunkTiles;
    float* const x = share.scratch;
    order_groups(call.x + share.token_begin * call.x_stride, call.x_stride, tokens, a.in_features,
                 a.padded_in_features(), kM, x);
    Value* const y = call.y + share.token_begin * call.y_stride;
    float lanes[8 * kSum * kMostPicked];
    for (int64_t row_tile = share.row_begin; row_tile < share.row_end; ++row_tile) {
      for (int64_t i = 0; i < 8 * kSum * tokens; ++i) lanes[i] = 0.0f;
      for (int64_t tile = 0; tile < tiles; tile += chunk) {
        const int64_t before = (row_tile * tiles + tile) * 8;
        cut(tokens, [&](auto count, int64_t t) {
          run_chunk<decltype(count)::kCount>(
              a.values + before * Tile::kWeights, a.positions + before * Tile::kBytes,
              min64(chunk, tiles - tile), x + tile * x_tile + t * Tile::kInputs, x_tile,
              lanes + t * 8 * kSum);
        });
      }
      const int64_t output = row_tile * 16, outputs = min64(16, a.out_features - output);
      float bias[16] = {};
      for (int64_t n = 0; call.bias != nullptr && n < outputs; ++n) {
        bias[n] = widened(call.bias[output + n]);
      }
      cut(tokens, [&](auto count, int64_t first) {
        constexpr int T = decltype(count)::kCount;
        for (int64_t t = 0; t < T; ++t) {
          write(lanes + first * 8 * kSum + t * kSum, T * kSum, bias, call.activation, outputs,
                y + (first + t) * call.y_stride + output);
        }
      });
    }
  }
};

// bfloat16 of the patterns that have Picks (cpu/unwidened.inc).
template <class V>
struct PicksOfBFloat16 {
  using Matrix = NMMatrixOf<BFloat16>;
  static constexpr int64_t kMostTokens = kMostPicked;

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    if (a.m == 8) {
      PicksFamily<V, BFloat16, 4, 8>::run_share(a, call, share);
    } else if (a.m == 16) {
      PicksFamily<V, BFloat16, 8, 16>::run_share(a, call, share);
    } else if (a.n == 1) {
      PicksFamily<V, BFloat16, 1, 4>::run_share(a, call, share);
    } else {
      PicksFamily<V, BFloat16, 2, 4>::run_share(a, call, share);
    }
  }
};
