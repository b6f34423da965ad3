// 2:4 of bfloat16 in pairs that exist before any output asks for them. Included inside an ISA
// region, before pairs_single.inl.h, which walks through it.

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
