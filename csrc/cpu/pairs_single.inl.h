// Kernels of bfloat16 for single rows: each output has its own inputs. Vectors of tokens, one
// output at a time. Included inside an ISA region.
//
//   acc[m] += splat(weights for k and l) . (x[k][m], x[l][m])
//
// Two weights that follow one another in a row make a pair. For each pair: a load and a shuffle for
// each dot product, so the panel is walked through in K-tiles that stay in L1, as in
// single.inl.h:
//
//   for a panel of tokens:  pack it
//     for a chunk of outputs:
//       for a K-tile:         Weights::add: onto the cells, output by output
//       round the cells into y
//
// The order in which a sum is taken does not depend on the panel.

// Two sums of each output, which take turns: a dot product takes longer than four of them.
template <class V, int MV>
struct PairSums {
  using Reg = typename V::Reg;
  using Pairs = typename V::Pairs;
  using Wide = typename V::Wide;
  static constexpr int64_t kCells = MV * V::kLanes;  // of an output
  static constexpr int64_t kWidth = PairsPanel<V, false>::width(kCells);

  Reg acc[2][MV];

  SPARSEKERN_INLINE void begin(const float* cell, bool first_tile) {
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      acc[0][m] = first_tile ? Wide::zero() : Wide::load(cell + m * V::kLanes);
      acc[1][m] = Wide::zero();
    }
  }

  SPARSEKERN_INLINE void add(int copy, Pairs weights, const BFloat16* x, const BFloat16* other) {
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; m += 2) {
      const Pairs a = V::load(x + m / 2 * V::kLine), b = V::load(other + m / 2 * V::kLine);
      acc[copy][m] = V::dot(weights, V::pair_low(a, b), acc[copy][m]);
      if (m + 1 < MV) acc[copy][m + 1] = V::dot(weights, V::pair_high(a, b), acc[copy][m + 1]);
    }
  }

  SPARSEKERN_INLINE void end(float* cell) {
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) Wide::store(cell + m * V::kLanes, Wide::add(acc[0][m], acc[1][m]));
  }
};

struct PairsTile {
  const BFloat16* panel;  // of input 0
  int64_t input_begin, input_end;
  BFloat16* expanded;  // room for kMostExpanded
};

// Inputs of a K-tile whose panel stays in L1. Sums end with a tile, so that its size is that of a
// full panel, whatever this one is.
template <class V>
static int64_t tile_depth(int64_t panel, int64_t quantum) {
  constexpr int64_t kTileBytes = 24 * 1024;
  return max64(1, kTileBytes / (2 * PairsPanel<V, false>::width(panel) * quantum)) * quantum;
}

// Blocks of one row.
template <class V, int MV>
struct PairedRows {
  using Matrix = BlockMatrixOf<BFloat16>;
  using Sums = PairSums<V, MV>;
  static int64_t depth(const Matrix& a, int64_t panel) { return tile_depth<V>(panel, a.cols); }
  static constexpr int64_t kOutputsAhead = 2;

  static int64_t outputs_before(const Matrix& a, int64_t band) {
    return min64(band, a.out_features);
  }
  static void start(const Matrix& a, int64_t begin, int64_t end, int32_t* cursors) {
    for (int64_t n = begin; n < end; ++n) *cursors++ = a.offsets[n];
  }

  // Adds single weights from `begin` on, by fours, to the end of the tile or a few beyond, which
  // does no harm; what is fewer than four is left to the last tile. Returns the first weight left.
  static SPARSEKERN_INLINE int32_t add_fours(Sums& sums, const Matrix& a, int32_t begin,
                                             int32_t end, int64_t column_end,
                                             const BFloat16* panel) {
    const auto x = [&](int i) { return panel + a.columns[begin + i] * Sums::kWidth; };
    for (; end - begin >= 4 && a.columns[begin] < column_end; begin += 4) {
      sums.add(0, V::splat_two(a.values + begin), x(0), x(1));
      sums.add(1, V::splat_two(a.values + begin + 2), x(2), x(3));
    }
    return begin;
  }

  // Adds the blocks in the tile, from `begin` on, each by pairs; returns the first one beyond.
  static SPARSEKERN_INLINE int32_t add_blocks(Sums& sums, const Matrix& a, int32_t begin,
                                              int32_t end, int64_t column_end,
                                              const BFloat16* panel) {
    const int64_t cols = a.cols;
    const BFloat16* const zeros = panel + a.padded_in_features() * Sums::kWidth;
    for (; begin < end && a.columns[begin] < column_end; ++begin) {
      const BFloat16* w = a.values + begin * cols;
      const BFloat16* x = panel + a.columns[begin] * cols * Sums::kWidth;
      int64_t j = 0;
      for (; j + 2 <= cols; j += 2, w += 2, x += 2 * Sums::kWidth) {
        sums.add(0, V::splat_two(w), x, x + Sums::kWidth);
      }
      if (j < cols) sums.add(1, V::splat(*w, {0}), x, zeros);
    }
    return begin;
  }

  // `lines`: of values to fetch for a later output, for no hardware foresees the step from row to
  // row.
  template <bool kSingle>
  static SPARSEKERN_NOINLINE void add_tile(const Matrix& a, int64_t begin, int64_t end,
                                           const PairsTile& tile, int64_t lines, int32_t* cursors,
                                           float* cells) {
    const int64_t column_end = ceil_div(tile.input_end, a.cols);
    const bool last_tile = tile.input_end == a.padded_in_features();
    for (int64_t n = begin; n < end; ++n, ++cursors, cells += Sums::kCells) {
      const int64_t later = cursors[min64(kOutputsAhead, end - 1 - n)];
      for (int64_t i = 0; i < lines; ++i) {
        __builtin_prefetch(a.values + later * a.cols + i * V::kLine);
        __builtin_prefetch(a.columns + later + i * V::kLine);
      }
      Sums sums;
      sums.begin(cells, tile.input_begin == 0);
      int32_t next = *cursors;
      const int32_t row_end = a.offsets[n + 1];
      if constexpr (kSingle) next = add_fours(sums, a, next, row_end, column_end, tile.panel);
      if (!kSingle || last_tile) {
        next = add_blocks(sums, a, next, row_end, column_end, tile.panel);
      }
      *cursors = next;
      sums.end(cells);
    }
  }

  static void add(const Matrix& a, int64_t begin, int64_t end, const PairsTile& tile,
                  int32_t* cursors, float* cells) {
    const int64_t inputs = tile.input_end - tile.input_begin;
    const int64_t lines =
        ceil_div(a.stored() * inputs, a.out_features * a.padded_in_features() * V::kLine);
    if (a.cols == 1) {
      add_tile<true>(a, begin, end, tile, lines, cursors, cells);
    } else {
      add_tile<false>(a, begin, end, tile, lines, cursors, cells);
    }
  }
};

// n:m of single rows. kN, kM and kBits: n, m and the bits of a position, for patterns whose loops
// are unrolled; 0 for any.
template <class V, int MV, int kN, int kM, int kBits>
struct PairedGroups {
  using Matrix = NMMatrixOf<BFloat16>;
  using Sums = PairSums<V, MV>;
  static int64_t depth(const Matrix& a, int64_t panel) {
    return tile_depth<V>(panel, a.tile_inputs());
  }

  static int64_t outputs_before(const Matrix& a, int64_t band) {
    return min64(band * Matrix::kTileRows, a.out_features);
  }
  static void start(const Matrix&, int64_t, int64_t, int32_t*) {}

  // Groups q and q + 4 of a tile, for one row, whose values and positions `w` and `p` begin with;
  // `group`: numbers of the panel from a group to the next.
  static SPARSEKERN_INLINE void add_groups(Sums& sums, int n, int bits, int q, const BFloat16* w,
                                           const uint8_t* p, const BFloat16* x, int64_t group) {
    const auto x_of = [&](int half, int i) {
      const unsigned bit = half * 8 * n * bits + (q * n + i) * bits;
      const size_t position = (p[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
      return x + (q + 4 * half) * group + position * Sums::kWidth;
    };
    w += q * 4 * n;
    if (n % 2 == 0) {
      SPARSEKERN_UNROLL
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < n; i += 2) {
          sums.add(half, V::splat_two(w + half * 2 * n + i), x_of(half, i), x_of(half, i + 1));
        }
      }
    } else {
      for (int i = 0; i < n; ++i) {
        sums.add(q % 2, V::splat(w[i], w[2 * n + i]), x_of(0, i), x_of(1, i));
      }
    }
  }

  // Adds what the outputs [begin, end) have in the K-tile.
  static SPARSEKERN_NOINLINE void add(const Matrix& a, int64_t begin, int64_t end,
                                      const PairsTile& tile, int32_t*, float* cells) {
    const int n = kN ? kN : (int)a.n, bits = kN ? kBits : (int)a.position_bits();
    const int64_t m = kM ? kM : a.m;
    const int64_t first = tile.input_begin / a.tile_inputs();
    const int64_t tiles = ceil_div(tile.input_end, a.tile_inputs()) - first;
    const int64_t row_tile = a.group_tiles() * 8;  // in the values and positions of one g
    const int64_t g_values = 16 * n, g_bytes = 2 * n * bits;
    for (int64_t output = begin; output < end; ++output, cells += Sums::kCells) {
      const uint64_t tile_row = output % 16, pair = tile_row / 8;
      const int64_t at = output / 16 * row_tile + first * 8 + tile_row % 8;
      const BFloat16* w = a.values + at * g_values + pair * n;
      const uint8_t* p = a.positions + at * g_bytes + pair * (n * bits / 2);
      const BFloat16* x = tile.panel + tile.input_begin * Sums::kWidth;
      Sums sums;
      sums.begin(cells, tile.input_begin == 0);
      for (int64_t t = 0; t < tiles; ++t, w += 8 * g_values, p += 8 * g_bytes) {
        // The same of the next row tile: no hardware foresees the step.
        for (int64_t line = pair; line < ceil_div(n, 2); line += 2) {
          __builtin_prefetch(w + row_tile * g_values + line * V::kLine);
        }
        __builtin_prefetch(p + row_tile * g_bytes);
        SPARSEKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
          add_groups(sums, n, bits, q, w, p, x, m * Sums::kWidth);
        }
        x += 8 * m * Sums::kWidth;
      }
      sums.end(cells);
    }
  }
};

// 2:4 of single rows. The two inputs that a weight pair has are one of six pairs of its group,
// which are made once for all outputs of a chunk: a dot product then costs a load, and no shuffle.
template <class V, int MV>
struct PairedFours {
  using Matrix = NMMatrixOf<BFloat16>;
  using Sums = PairSums<V, MV>;
  static constexpr int64_t kSlot = 4 * V::kLine;  // room for a pair of four vectors of tokens
  // The positions p and q of a pair, p < q, make the slot p + 4 q, from 4 on. Those that no pair
  // has lie idle: finding the slot must cost nothing, and what is never read takes no cache.
  static constexpr int64_t kSlots = 11, kFirstSlot = 4;
  static constexpr int64_t kGroup = kSlots * kSlot;
  static constexpr int64_t kTiles = 2;  // group tiles of a K-tile: 24 KiB
  static_assert(MV <= 4 && kTiles * 8 * kGroup <= kMostExpanded, "the room for pairs");

  static int64_t depth(const Matrix& a, int64_t) { return kTiles * a.tile_inputs(); }
  static int64_t outputs_before(const Matrix& a, int64_t band) {
    return min64(band * Matrix::kTileRows, a.out_features);
  }
  static void start(const Matrix&, int64_t, int64_t, int32_t*) {}

  static void expand(const PairsTile& tile) {
    const BFloat16* x = tile.panel + tile.input_begin * Sums::kWidth;
    BFloat16* group = tile.expanded;
    for (int64_t k = tile.input_begin; k < tile.input_end; k += 4, group += kGroup) {
      for (int p = 0; p < 3; ++p) {
        for (int q = p + 1; q < 4; ++q) {
          BFloat16* const slot = group + (p + 4 * q - kFirstSlot) * kSlot;
          SPARSEKERN_UNROLL
          for (int m = 0; m < MV; m += 2) {
            const auto a = V::load(x + p * Sums::kWidth + m / 2 * V::kLine);
            const auto b = V::load(x + q * Sums::kWidth + m / 2 * V::kLine);
            V::store(slot + m * V::kLine, V::pair_low(a, b));
            if (m + 1 < MV) V::store(slot + (m + 1) * V::kLine, V::pair_high(a, b));
          }
        }
      }
      x += 4 * Sums::kWidth;
    }
  }

  // The groups of a tile, for the rows g and g + 8. Their weights fill a vector, out of which they
  // are splat by shuffles: loads are what the loop is bound by.
  template <int i = 0>
  static SPARSEKERN_INLINE void add_groups(typename V::Reg acc[2][MV], typename V::Pairs weights,
                                           uint64_t slots, const BFloat16* expanded) {
    constexpr int q = i / 4, half = i / 2 % 2, row = i % 2;  // as the values lie
    constexpr int kBit = half * 32 + row * 16 + q * 4;
    const BFloat16* pairs =
        expanded + ((q + 4 * half) * kGroup - kFirstSlot * kSlot) + (slots >> kBit & 15) * kSlot;
    const auto weight = V::template splat_of<i>(weights);
    __asm__("" : "+r"(pairs));  // one address for all loads: with an index in each they are slower
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      acc[row][m] = V::dot(weight, V::load(pairs + m * V::kLine), acc[row][m]);
    }
    if constexpr (i < 15) add_groups<i + 1>(acc, weights, slots, expanded);
  }

  static SPARSEKERN_INLINE void add_rows(const BFloat16* w, const uint8_t* p, int64_t tiles,
                                         int64_t row_tile, const BFloat16* expanded, bool first,
                                         float* cells, float* other_cells) {
    typename V::Reg acc[2][MV];
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      acc[0][m] = first ? V::Wide::zero() : V::Wide::load(cells + m * V::kLanes);
      acc[1][m] = first ? V::Wide::zero() : V::Wide::load(other_cells + m * V::kLanes);
    }
    for (int64_t t = 0; t < tiles; ++t, w += 8 * 32, p += 8 * 8, expanded += 8 * kGroup) {
      // The same of the next row tile: no hardware foresees the step.
      __builtin_prefetch(w + row_tile * 32);
      __builtin_prefetch(p + row_tile * 8);
      uint64_t slots;
      __builtin_memcpy(&slots, p, sizeof slots);
      add_groups(acc, V::load(w), slots, expanded);
    }
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      V::Wide::store(cells + m * V::kLanes, acc[0][m]);
      V::Wide::store(other_cells + m * V::kLanes, acc[1][m]);
    }
  }

  // Whole row tiles: rows beyond the outputs have cells too, which nobody reads.
  static SPARSEKERN_NOINLINE void add(const Matrix& a, int64_t begin, int64_t end,
                                      const PairsTile& tile, int32_t*, float* cells) {
    expand(tile);
    const int64_t first = tile.input_begin / 32, tiles = ceil_div(tile.input_end, 32) - first;
    const int64_t row_tile = a.group_tiles() * 8;  // in the values and positions of one g
    for (int64_t output = begin; output < end; output += 16, cells += 16 * Sums::kCells) {
      const int64_t at = output / 16 * row_tile + first * 8;
      for (int64_t g = 0; g < 8; ++g) {
        add_rows(a.values + (at + g) * 32, a.positions + (at + g) * 8, tiles, row_tile,
                 tile.expanded, tile.input_begin == 0, cells + g * Sums::kCells,
                 cells + (g + 8) * Sums::kCells);
      }
    }
  }
};

// Rounds the sums of `outputs` outputs, in cells [outputs][MV][16], into y.
template <class V, int MV>
static void round_cells(const float* cells, int64_t outputs, const BFloat16* bias,
                        Activation activation, int64_t tokens, BFloat16* y, int64_t y_stride) {
  using Wide = typename V::Wide;
  alignas(64) typename V::Pairs pairs[V::kLine / 2 * MV];
  const auto sum_of = [&](int64_t n, int m) {
    const auto sum = Wide::load(cells + (n * MV + m) * V::kLanes);
    return bias == nullptr ? sum : Wide::add(sum, Wide::set(V::widened(bias[n])));
  };
  for (int64_t n = 0; n < outputs; n += 2) {
    const int64_t second = min64(n + 1, outputs - 1);
    for (int m = 0; m < MV; ++m) {
      pairs[n / 2 * MV + m] = V::round_pairs(activate<Wide>(sum_of(n, m), activation),
                                             activate<Wide>(sum_of(second, m), activation));
    }
  }
  write_pairs<V, MV>(pairs, outputs, tokens, y, y_stride);
}

template <class V, int kMostVectors>
struct PairsOfSingle {
  static constexpr KernelFamily kFamily = KernelFamily::kPairs;
  static constexpr int64_t kPanel = kMostVectors * V::kLanes;
  static constexpr int64_t kTileOutputs = 1, kTileLanes = V::kLanes;
  static constexpr int64_t kQuantum = V::kLanes;
  using Panel = PairsPanel<V, false>;

  template <class Weights, int MV>
  static void run_panel(const typename Weights::Matrix& a, const CallOf<BFloat16>& call,
                        const Share& share, const BFloat16* panel, int64_t tokens, BFloat16* y,
                        int32_t* cursors, float* cells, BFloat16* expanded) {
    constexpr int64_t kCells = Weights::Sums::kCells;
    constexpr int64_t kChunk = kMostCells / kCells / V::kLine * V::kLine;
    static_assert(kMostCells / kCells <= kMostCursors, "a chunk");
    const int64_t depth = Weights::depth(a, kPanel);
    const int64_t outputs_end = Weights::outputs_before(a, share.row_end);
    int64_t end;
    for (int64_t n = Weights::outputs_before(a, share.row_begin); n < outputs_end; n = end) {
      end = min64(outputs_end, (n + kChunk) / V::kLine * V::kLine);
      Weights::start(a, n, end, cursors);
      for (int64_t input = 0; input < a.padded_in_features(); input += depth) {
        const PairsTile tile{panel, input, min64(input + depth, a.padded_in_features()), expanded};
        Weights::add(a, n, end, tile, cursors, cells);
      }
      int64_t line_end;
      const float* cell = cells;
      for (int64_t line = n; line < end; cell += (line_end - line) * kCells, line = line_end) {
        line_end = min64(end, (line / V::kLine + 1) * V::kLine);
        round_cells<V, MV>(cell, line_end - line, call.bias ? call.bias + line : nullptr,
                           call.activation, tokens, y + line, call.y_stride);
      }
    }
  }

  // With<MV>::type: the weights for so many vectors.
  template <template <int> class With, int MV = kMostVectors, class Matrix, class... Rest>
  static void run_exact(const Matrix& a, const CallOf<BFloat16>& call, const Share& share,
                        const BFloat16* panel, int64_t tokens, Rest... rest) {
    if (ceil_div(tokens, V::kLanes) == MV) {
      run_panel<typename With<MV>::type, MV>(a, call, share, panel, tokens, rest...);
    } else if constexpr (MV > 1) {
      run_exact<With, MV - 1>(a, call, share, panel, tokens, rest...);
    }
  }

  template <template <int> class With, class Matrix>
  static void run_with(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    float* const cells = share.scratch;
    int32_t* const cursors = reinterpret_cast<int32_t*>(cells + kMostCells);
    BFloat16* const expanded = reinterpret_cast<BFloat16*>(cells + kMostCells + kMostCursors);
    BFloat16* const panel = expanded + kMostExpanded;
    const int64_t total = share.token_end - share.token_begin;
    const int64_t panels = ceil_div(total, kPanel);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t begin = share.token_begin + split_evenly<PairsOfSingle>(total, p, panels);
      const int64_t end = share.token_begin + split_evenly<PairsOfSingle>(total, p + 1, panels);
      Panel::pack(call.x + begin * call.x_stride, call.x_stride, end - begin, a.in_features,
                  a.padded_in_features(), panel);
      run_exact<With>(a, call, share, panel, end - begin, call.y + begin * call.y_stride, cursors,
                      cells, expanded);
    }
  }
};

template <class V, int kMostVectors>
struct PairsOfBlocks : PairsOfSingle<V, kMostVectors> {
  using Matrix = BlockMatrixOf<BFloat16>;
  template <int MV>
  struct With {
    using type = PairedRows<V, MV>;
  };

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    PairsOfBlocks::template run_with<With>(a, call, share);
  }
};

template <class V, int kMostVectors>
struct PairsOfNM : PairsOfSingle<V, kMostVectors> {
  using Matrix = NMMatrixOf<BFloat16>;
  template <int kN, int kM, int kBits>
  struct Of {
    template <int MV>
    struct With {
      using type = PairedGroups<V, MV, kN, kM, kBits>;
    };
  };
  template <int MV>
  struct Fours {
    using type = PairedFours<V, MV>;
  };

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    const auto is = [&](int64_t n, int64_t m) { return a.n == n && a.m == m; };
    if (is(2, 4)) {
      PairsOfNM::template run_with<Fours>(a, call, share);
    } else if (is(1, 4)) {
      PairsOfNM::template run_with<Of<1, 4, 2>::template With>(a, call, share);
    } else if (is(4, 8)) {
      PairsOfNM::template run_with<Of<4, 8, 4>::template With>(a, call, share);
    } else if (is(8, 16)) {
      PairsOfNM::template run_with<Of<8, 16, 4>::template With>(a, call, share);
    } else {
      PairsOfNM::template run_with<Of<0, 0, 0>::template With>(a, call, share);
    }
  }
};
