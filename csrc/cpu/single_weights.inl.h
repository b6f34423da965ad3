// What one output of single weights, or of n:m, adds to its sums in a K-tile. Included inside an
// ISA region.
//
//   acc[m] += splat(weight) * x[k][m]                 MV vectors of tokens
//
// For each weight: MV activation loads for MV multiply-adds; the weights are loaded by twos and
// fours and splat by shuffles, for loads are what it is bound by. The order in which a sum is taken
// does not depend on the panel.

// kCopies sums of each output, for chains of additions that are too short to hide their latency.
template <class V, int MV, int kCopies>
struct SingleSums {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;

  Reg acc[kCopies][MV];

  SPARSEKERN_INLINE void begin(const float* cell, bool first_tile) {
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) acc[0][m] = first_tile ? V::zero() : V::load(cell + m * kLanes);
    SPARSEKERN_UNROLL
    for (int c = 1; c < kCopies; ++c) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[c][m] = V::zero();
    }
  }

  SPARSEKERN_INLINE void add(int copy, const float* w, const float* x) {
    add(copy, V::splat(w), x);
  }

  SPARSEKERN_INLINE void add(int copy, Reg weight, const float* x) {
    __asm__("" : "+r"(x));  // one address for all loads: with an index in each they are slower
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      acc[copy][m] = V::fma(weight, V::load(x + m * kLanes), acc[copy][m]);
    }
  }

  SPARSEKERN_INLINE void end(float* cell) {
    SPARSEKERN_UNROLL
    for (int c = 1; c < kCopies; ++c) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[0][m] = V::add(acc[0][m], acc[c][m]);
    }
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) V::store(cell + m * kLanes, acc[0][m]);
  }
};

struct SingleTile {
  const float* panel;  // of input 0
  int64_t input_begin, input_end;
};

// Blocks of any height and width; those of 1 x 1 are what is meant. kPanelAtHand: whether all
// inputs of the panel can be read, and not those of the tile alone.
template <class V, int MV, int kCopies, bool kPanelAtHand = true>
struct BlockWeights {
  using Matrix = BlockMatrix;
  using Sums = SingleSums<V, MV, kCopies>;

  static constexpr int64_t kOutputsAhead = 2;
  static int64_t outputs_before(const BlockMatrix& a, int64_t band) {
    return min64(band * a.rows, a.out_features);
  }

  // The first block of each output.
  static void start(const BlockMatrix& a, int64_t begin, int64_t end, int32_t* cursors) {
    for (int64_t n = begin; n < end; ++n) *cursors++ = a.offsets[n / a.rows];
  }

  // Adds single weights of one output from `begin` on, by fours, to the end of the tile or, if they
  // are at hand, a few beyond, which does no harm; what is fewer than four is left to the last
  // tile. So a tile costs one branch foretold wrongly. Returns the first weight left.
  static SPARSEKERN_INLINE int32_t add_fours(Sums& sums, const BlockMatrix& a, int32_t begin,
                                             int32_t end, int64_t column_end, const float* panel) {
    const auto x = [&](int i) { return panel + a.columns[begin + i] * Sums::kWidth; };
    constexpr int kLast = kPanelAtHand ? 0 : 3;
    for (; end - begin >= 4 && a.columns[begin + kLast] < column_end; begin += 4) {
      const auto quad = V::load_quad(a.values + begin);
      sums.add(0, V::template splat_of<0>(quad), x(0));
      sums.add(1 % kCopies, V::template splat_of<1>(quad), x(1));
      sums.add(2 % kCopies, V::template splat_of<2>(quad), x(2));
      sums.add(3 % kCopies, V::template splat_of<3>(quad), x(3));
    }
    return begin;
  }

  // Adds the blocks of one output in the tile, from `begin` on; returns the first one beyond.
  static SPARSEKERN_INLINE int32_t add_blocks(Sums& sums, const BlockMatrix& a, int32_t begin,
                                              int32_t end, int64_t offset, int64_t column_end,
                                              const float* panel) {
    const int64_t rows = a.rows, cols = a.cols;
    const float* w = a.values + begin * rows * cols + offset;
    for (; begin < end && a.columns[begin] < column_end; ++begin) {
      const float* x = panel + a.columns[begin] * cols * Sums::kWidth;
      for (int64_t j = 0; j < cols; ++j, w += rows, x += Sums::kWidth) sums.add(0, w, x);
    }
    return begin;
  }

  // Adds what the outputs [begin, end) have in the tile, and moves their cursors on. `lines`: of
  // values and of columns to fetch for a later output, for no hardware foresees the step from row
  // to row.
  template <bool kSingle>
  static SPARSEKERN_NOINLINE void add_tile(const BlockMatrix& a, int64_t begin, int64_t end,
                                           const SingleTile& tile, int64_t lines, int32_t* cursors,
                                           float* cells) {
    const int64_t column_end = ceil_div(tile.input_end, a.cols);
    const bool first_tile = tile.input_begin == 0;
    const bool last_tile = tile.input_end == a.padded_in_features();
    int64_t row = begin / a.rows, offset = begin % a.rows;
    for (int64_t n = begin; n < end; ++n, ++cursors, cells += Sums::kWidth) {
      if constexpr (kSingle) {
        const int64_t later = cursors[min64(kOutputsAhead, end - 1 - n)];
        for (int64_t i = 0; i < lines; ++i) prefetch(a.values + later + i * kLine);
        for (int64_t i = 0; i < lines; i += 2) __builtin_prefetch(a.columns + later + i * kLine);
      }
      Sums sums;
      sums.begin(cells, first_tile);
      int32_t next = *cursors;
      const int32_t row_end = a.offsets[row + 1];
      if constexpr (kSingle) next = add_fours(sums, a, next, row_end, column_end, tile.panel);
      if (!kSingle || !kPanelAtHand || last_tile) {
        next = add_blocks(sums, a, next, row_end, offset, column_end, tile.panel);
      }
      *cursors = next;
      sums.end(cells);
      if (kSingle || ++offset == a.rows) {
        offset = 0;
        ++row;
      }
    }
  }

  static void add(const BlockMatrix& a, int64_t begin, int64_t end, const SingleTile& tile,
                  int32_t* cursors, float* cells) {
    const int64_t inputs = tile.input_end - tile.input_begin;
    const int64_t lines =
        ceil_div(a.stored() * inputs, a.block_rows() * a.padded_in_features() * kLine);
    if (a.rows * a.cols == 1) {
      add_tile<true>(a, begin, end, tile, lines, cursors, cells);
    } else {
      add_tile<false>(a, begin, end, tile, lines, cursors, cells);
    }
  }
};

// n:m of single rows; kN, kM and kBits as in Pattern.
template <class V, int MV, int kCopies, int kN, int kM, int kBits>
struct NMWeights {
  using Matrix = NMMatrix;
  using Sums = SingleSums<V, MV, kCopies>;

  static int64_t outputs_before(const NMMatrix& a, int64_t band) {
    return min64(band * NMMatrix::kTileRows, a.out_features);
  }
  static void start(const NMMatrix&, int64_t, int64_t, int32_t*) {}

  // Group q + 4 half of a tile, for one row. `w` and `p` begin with the row's values and positions.
  static SPARSEKERN_INLINE void add_group(Sums& sums, int n, int bits, int q, int half,
                                          const float* w, const uint8_t* p, const float* x) {
    w += (q * 2 + half) * 2 * n;
    p += half * n * bits;
    const auto x_of = [&](int i) {
      const unsigned bit = (q * n + i) * bits;
      return x + (size_t)((p[bit / 8] >> (bit % 8)) & ((1u << bits) - 1)) * Sums::kWidth;
    };
    // Copies of the sums take turns; which one is a constant after unrolling.
    if constexpr (kN == 1) {
      sums.add((q * 2 + half) % kCopies, w, x_of(0));
    } else if constexpr (kN == 2) {
      const auto pair = V::load_pair(w);
      sums.add(half * 2 % kCopies, V::template splat_of<0>(pair), x_of(0));
      sums.add((half * 2 + 1) % kCopies, V::template splat_of<1>(pair), x_of(1));
    } else if constexpr (kN > 0) {
      static_assert(kN % 4 == 0, "by fours");
      SPARSEKERN_UNROLL
      for (int i = 0; i < kN; i += 4) {
        const auto quad = V::load_quad(w + i);
        sums.add(0, V::template splat_of<0>(quad), x_of(i));
        sums.add(1 % kCopies, V::template splat_of<1>(quad), x_of(i + 1));
        sums.add(2 % kCopies, V::template splat_of<2>(quad), x_of(i + 2));
        sums.add(3 % kCopies, V::template splat_of<3>(quad), x_of(i + 3));
      }
    } else {
      for (int i = 0; i < n; ++i) sums.add(half % kCopies, w + i, x_of(i));
    }
  }

  // One row's groups of a tile; `group`: floats of the panel from one to the next.
  static SPARSEKERN_INLINE void add_tile(Sums& sums, int n, int bits, const float* w,
                                         const uint8_t* p, const float* x, int64_t group) {
    if constexpr (kN == 1 || kN == 2) {
      SPARSEKERN_UNROLL
      for (int q = 0; q < 4; ++q) {
        add_group(sums, n, bits, q, 0, w, p, x + q * group);
        add_group(sums, n, bits, q, 1, w, p, x + (q + 4) * group);
      }
    } else {
      for (int q = 0; q < 4; ++q) {
        add_group(sums, n, bits, q, 0, w, p, x + q * group);
        add_group(sums, n, bits, q, 1, w, p, x + (q + 4) * group);
      }
    }
  }

  // Adds what the outputs [begin, end) have in the K-tile.
  static SPARSEKERN_NOINLINE void add(const NMMatrix& a, int64_t begin, int64_t end,
                                      const SingleTile& tile, int32_t*, float* cells) {
    const int n = kN ? kN : (int)a.n, bits = kN ? kBits : (int)a.position_bits();
    const int64_t m = kM ? kM : a.m;
    const int64_t first = tile.input_begin / a.tile_inputs();
    const int64_t tiles = ceil_div(tile.input_end, a.tile_inputs()) - first;
    const int64_t row_tile = a.group_tiles() * 8;  // in the values and positions of one g
    const int64_t g_values = 16 * n, g_bytes = 2 * n * bits;
    for (int64_t output = begin; output < end; ++output, cells += Sums::kWidth) {
      const auto row = a.row_of(output, first, row_tile, n, bits);
      const auto* w = row.values;
      const uint8_t* p = row.positions;
      const uint64_t pair = (uint64_t)output / 8 % 2;
      const float* x = tile.panel + tile.input_begin * Sums::kWidth;
      Sums sums;
      sums.begin(cells, tile.input_begin == 0);
      for (int64_t t = 0; t < tiles; ++t, w += 8 * g_values, p += 8 * g_bytes) {
        // The same of the next row tile: no hardware foresees the step.
        for (int64_t line = pair; line < n; line += 2) {
          prefetch(w + row_tile * g_values + line * kLine);
        }
        __builtin_prefetch(p + row_tile * g_bytes);
        add_tile(sums, n, bits, w, p, x, m * Sums::kWidth);
        x += 8 * m * Sums::kWidth;
      }
      sums.end(cells);
    }
  }
};
