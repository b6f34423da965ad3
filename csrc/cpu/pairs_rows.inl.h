// Single rows of bfloat16 weights in pairs: of blocks of one row, and of n:m. Included inside an
// ISA region, before pairs_single.inl.h, which walks through them.

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

// n:m of single rows; kN, kM and kBits as in Pattern.
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
      const auto row = a.row_of(output, first, row_tile, n, bits);
      const auto* w = row.values;
      const uint8_t* p = row.positions;
      const uint64_t pair = (uint64_t)output / 8 % 2;
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
