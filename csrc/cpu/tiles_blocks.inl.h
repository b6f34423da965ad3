// Tiles of blocks of several outputs. Included inside an ISA region, before tiles.inl.h, which
// multiplies by them.

// Blocks of multiples of 4 rows. The inputs that a strip of outputs keeps are gathered where they
// are few, and tiles hold nothing else. Where they are many, or lie in whole tiles, the panel is
// multiplied as it lies, but for tiles without any weight.
//
// What a strip takes is a list of units: whole tiles of inputs, or pairs of them if all blocks
// consist of pairs, or inputs. Where hardly a tile is without any weight there is no list.
template <class V>
class StripBlocks {
 public:
  using Matrix = BlockMatrixOf<BFloat16>;
  static constexpr bool kMayGather = true;

  explicit StripBlocks(const Matrix& a) : a_(a) {
    const auto some = [&](int64_t blocks) {  // the chance that one of them is there
      double none = 1;
      for (int64_t i = 0; i < blocks; ++i) none *= 1 - a.density;
      return 1 - none;
    };
    // Of the whole weight: the choice must not depend on how the work is cut. Gathering a tile of
    // inputs takes about four fifths of the time that multiplying by it does.
    constexpr double kGathering = 0.8;
    const int64_t block_rows = ceil_div(V::kTileOutputs, a.rows);
    const double inputs = some(block_rows);
    const double tiles = some(block_rows * ceil_div(V::kTileInputs, a.cols));
    if (inputs * (1 + kGathering) < tiles) unit_ = a.cols % 2 == 0 ? 2 : 1;
    takes_all_ = !gathers() && tiles > 0.95;
  }

  bool gathers() const { return unit_ < V::kTileInputs; }

  int64_t fill(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    if (unit_ == 1) return fill_by<1>(chunk, begin, end);
    if (unit_ == 2) return fill_by<2>(chunk, begin, end);
    return fill_by<V::kTileInputs>(chunk, begin, end);
  }

 private:
  template <int64_t kUnit>
  int64_t fill_by(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    constexpr int64_t kTileUnits = V::kTileInputs / kUnit;
    const bool tall = a_.rows % V::kTileOutputs == 0;
    const int64_t all = whole_tiles(a_.padded_in_features()) / kUnit;
    int64_t listed_row = -1, steps = takes_all_ ? all : 0;
    const uint32_t* list = nullptr;
    for (; begin < end; begin += V::kTileOutputs) {
      const int64_t row = begin / a_.rows;
      const int64_t row_end = ceil_div(min64(begin + V::kTileOutputs, end), a_.rows);
      const bool listed = takes_all_ || (tall && row == listed_row);
      int64_t units = 0;
      if (!listed) {
        units = list_units<kUnit>(chunk, row, row_end);
        steps = ceil_div(units, kTileUnits);
      }
      if (!chunk.has_room(steps)) break;
      if (!listed) {
        // The last tile is filled up with the zeros that end a panel.
        for (; units < steps * kTileUnits; ++units) chunk.units()[units] = (uint32_t)all;
        list = chunk.keep_units(units);
        listed_row = row;
      }
      if (tall && kUnit < V::kTileInputs) {
        pack_stored(a_.values + a_.stored_before(row) + begin % a_.rows,
                    (a_.offsets[row + 1] - a_.offsets[row]) * a_.cols, steps, chunk.weights());
      } else {
        spread(begin, row, row_end, chunk.dense());
        pack_units<kUnit>(chunk.dense(), list, steps, chunk.weights());
      }
      chunk.keep_strip(steps, list);
    }
    return begin;
  }

  // Lists the units that block rows have weights in; how many there are.
  template <int64_t kUnit>
  int64_t list_units(TileChunk<V>& chunk, int64_t row, int64_t row_end) const {
    uint8_t* const marks = chunk.marks();
    const uint16_t* column = a_.columns + a_.offsets[row];
    const uint16_t* const end = a_.columns + a_.offsets[row_end];
    const uint64_t cols = (uint64_t)a_.cols;
    if (cols == 1) {
      for (; column < end; ++column) marks[*column / kUnit] = 1;
    }
    for (; column < end; ++column) {
      const uint64_t input = *column * cols, last = (input + cols - 1) / kUnit;
      for (uint64_t unit = input / kUnit; unit <= last; ++unit) marks[unit] = 1;
    }
    uint32_t* next = chunk.units();
    const int64_t all = whole_tiles(a_.padded_in_features()) / kUnit;
    for (int64_t unit = 0; unit < all; unit += 64) {
      next += V::take_marks(marks + unit, (uint32_t)unit, next);
    }
    return next - chunk.units();
  }

  // The weights of a strip, each input where it lies among all: [inputs][16 outputs].
  void spread(int64_t begin, int64_t row, int64_t row_end, BFloat16* dense) const {
    for (; row < row_end; ++row) {
      const int64_t first = max64(begin, row * a_.rows);
      const int64_t last = min64(begin + V::kTileOutputs, (row + 1) * a_.rows);
      const BFloat16* const w = a_.values + a_.stored_before(row) + (first - row * a_.rows);
      BFloat16* const to = dense + (first - begin);
      if (last - first == 16) {
        spread_row<16>(w, row, to);
      } else if (last - first == 8) {
        spread_row<8>(w, row, to);
      } else {
        for (int64_t i = 0; i < last - first; i += 4) spread_row<4>(w + i, row, to + i);
      }
    }
  }
  // Some outputs of a block row.
  template <int64_t kOutputs>
  void spread_row(const BFloat16* w, int64_t row, BFloat16* dense) const {
    const int64_t rows = a_.rows, cols = a_.cols;
    const uint16_t* column = a_.columns + a_.offsets[row];
    const uint16_t* const end = a_.columns + a_.offsets[row + 1];
    if (cols == 1) {
      for (; column < end; ++column, w += rows) {
        __builtin_memcpy(dense + *column * V::kTileOutputs, w, kOutputs * sizeof(BFloat16));
      }
    }
    for (; column < end; ++column) {
      BFloat16* to = dense + *column * cols * V::kTileOutputs;
      for (int64_t j = 0; j < cols; ++j, w += rows, to += V::kTileOutputs) {
        __builtin_memcpy(to, w, kOutputs * sizeof(BFloat16));
      }
    }
  }

  // A tile [pairs][outputs][2], the other way round.
  static SPARSEKERN_INLINE void turn(const typename V::Pairs pairs[16], BFloat16* tile) {
    typename V::Pairs outputs[16];
    V::transpose(pairs, outputs);
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) V::store(tile + i * V::kTileInputs, outputs[i]);
  }

  // Tiles of the units listed, or of all, which leave zeros where they were spread.
  template <int64_t kUnit>
  static void pack_units(BFloat16* dense, const uint32_t* list, int64_t steps, BFloat16* tile) {
    constexpr int64_t kTileUnits = V::kTileInputs / kUnit;
    const auto pairing = V::pairing_of(V::kTileOutputs);
    for (int64_t step = 0; step < steps; ++step, tile += V::kTileWeights) {
      const uint32_t* const units = list == nullptr ? nullptr : list + step * kTileUnits;
      typename V::Pairs pairs[16];
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) {
        if constexpr (kUnit == 1) {
          BFloat16* const w = dense + units[2 * i] * V::kTileOutputs;
          BFloat16* const other = dense + units[2 * i + 1] * V::kTileOutputs;
          pairs[i] = V::paired(V::load_two(w, other), pairing);
          V::store_two(w, other, V::zero_pairs());
        } else {
          const int64_t window = units == nullptr ? step : units[0];
          const int64_t pair = kUnit == 2 ? units[i] : window * V::kTilePairs + i;
          BFloat16* const w = dense + pair * 2 * V::kTileOutputs;
          pairs[i] = V::paired(V::load(w), pairing);
          V::store(w, V::zero_pairs());
        }
      }
      turn(pairs, tile);
    }
  }

  // The same of a block row that the strip lies in, straight out of its values.
  void pack_stored(const BFloat16* w, int64_t inputs, int64_t steps, BFloat16* tile) const {
    const auto pairing = V::pairing_of(V::kTileOutputs);
    const int64_t rows = a_.rows;
    for (int64_t step = 0; step < steps; ++step, tile += V::kTileWeights) {
      typename V::Pairs pairs[16];
      if (inputs >= V::kTileInputs) {
        SPARSEKERN_UNROLL
        for (int i = 0; i < 16; ++i, w += 2 * rows) {
          pairs[i] = V::paired(V::load_two(w, w + rows), pairing);
        }
      } else {
        for (int i = 0; i < 16; ++i, w += 2 * rows) {
          const int64_t left = inputs - 2 * i;
          pairs[i] = left > 0 ? V::paired(V::load_two(w, left > 1 ? w + rows : nullptr), pairing)
                              : V::zero_pairs();
        }
      }
      inputs -= V::kTileInputs;
      turn(pairs, tile);
    }
  }

  const Matrix& a_;
  int64_t unit_ = V::kTileInputs;
  bool takes_all_;
};
