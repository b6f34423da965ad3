// Tiles of weights that single rows keep, written one by one among zeros. Included inside an ISA
// region, before tiles.inl.h, which multiplies by them.

// Where input k of an output lies, from the first on.
template <class V>
static SPARSEKERN_INLINE uint64_t place_in_tiles(uint64_t k) {
  return k / V::kTileInputs * V::kTileWeights + k % V::kTileInputs;
}

// Strips for the outputs from `begin` on, each with all tiles of its inputs; write(output, count,
// tile) writes the weights of `count` outputs among zeros, from the first tile on.
template <class V, class Write>
static int64_t fill_all(TileChunk<V>& chunk, int64_t begin, int64_t end, int64_t out_features,
                        int64_t padded_inputs, const Write& write) {
  const int64_t steps = whole_tiles(padded_inputs) / V::kTileInputs;
  for (; begin < end && chunk.has_room(steps); begin += V::kTileOutputs) {
    BFloat16* const tiles = chunk.weights();
    __builtin_memset(tiles, 0, size_t(steps * V::kTileWeights) * sizeof(BFloat16));
    write(begin, min64(V::kTileOutputs, out_features - begin), tiles);
    chunk.keep_strip(steps, nullptr);
  }
  return begin;
}

// Blocks of any height.
template <class V>
class AnyBlocks {
 public:
  using Matrix = BlockMatrixOf<BFloat16>;
  static constexpr bool kMayGather = false;

  explicit AnyBlocks(const Matrix& a) : a_(a) {}

  int64_t fill(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    const auto fill_by = [&](const auto& write) {
      return fill_all(chunk, begin, end, a_.out_features, a_.padded_in_features(), write);
    };
    const auto whole_rows = [&](auto rows) {
      constexpr int64_t kRows = decltype(rows)::kValue;
      return fill_by([&](int64_t output, int64_t outputs, BFloat16* tile) {
        for (int64_t i = 0; i < outputs; i += kRows) {
          write_row<kRows>((output + i) / kRows, tile + i * V::kTileInputs);
        }
      });
    };
    switch (a_.rows) {
      case 1:
        return whole_rows(Constant<1>{});
      case 2:
        return whole_rows(Constant<2>{});
    }
    return fill_by([&](int64_t output, int64_t outputs, BFloat16* tile) {
      for (int64_t i = 0; i < outputs; ++i) write_output(output + i, tile + i * V::kTileInputs);
    });
  }

 private:
  template <int64_t kNumber>
  struct Constant {
    static constexpr int64_t kValue = kNumber;
  };

  template <int64_t kRows>
  static SPARSEKERN_INLINE void write_weights(const BFloat16* w, BFloat16* to) {
    SPARSEKERN_UNROLL
    for (int64_t r = 0; r < kRows; ++r) to[r * V::kTileInputs] = w[r];
  }

  // A block row. The outputs that it has beyond those of the weight have room in the tile too.
  template <int64_t kRows>
  void write_row(int64_t row, BFloat16* tile) const {
    constexpr int64_t kBatch = 32;  // inputs whose places are known before weights are written
    int64_t block = a_.offsets[row];
    const int64_t end = a_.offsets[row + 1];
    const BFloat16* w = a_.values + a_.stored_before(row);
    if (a_.cols == 1) {
      for (; block + kBatch <= end; block += kBatch) {
        uint32_t places[kBatch];
        for (int64_t i = 0; i < kBatch; ++i) {
          places[i] = (uint32_t)place_in_tiles<V>(a_.columns[block + i]);
        }
        SPARSEKERN_UNROLL
        for (int64_t i = 0; i < kBatch; ++i, w += kRows) {
          write_weights<kRows>(w, tile + places[i]);
        }
      }
    }
    for (; block < end; ++block) {
      const uint64_t first = (uint64_t)a_.columns[block] * (uint64_t)a_.cols;
      for (int64_t j = 0; j < a_.cols; ++j, w += kRows) {
        write_weights<kRows>(w, tile + place_in_tiles<V>(first + (uint64_t)j));
      }
    }
  }

  // One of the outputs of a block row.
  void write_output(int64_t output, BFloat16* tile) const {
    const int64_t row = output / a_.rows;
    const BFloat16* w = a_.values + a_.stored_before(row) + output % a_.rows;
    for (int64_t block = a_.offsets[row]; block < a_.offsets[row + 1]; ++block) {
      const uint64_t first = (uint64_t)a_.columns[block] * (uint64_t)a_.cols;
      for (int64_t j = 0; j < a_.cols; ++j, w += a_.rows) {
        tile[place_in_tiles<V>(first + (uint64_t)j)] = *w;
      }
    }
  }

  const Matrix& a_;
};

// n:m of single rows.
template <class V>
class Groups {
 public:
  using Matrix = NMMatrixOf<BFloat16>;
  static constexpr bool kMayGather = false;

  explicit Groups(const Matrix& a) : a_(a) {}

  int64_t fill(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    if (a_.n == 1 && a_.m == 4) return expand<1, 4>(chunk, begin, end);
    if (a_.n == 2 && a_.m == 4) return expand<2, 4>(chunk, begin, end);
    if (a_.n == 4 && a_.m == 8) return expand<4, 8>(chunk, begin, end);
    if (a_.n == 8 && a_.m == 16) return expand<8, 16>(chunk, begin, end);
    return fill_all(chunk, begin, end, a_.out_features, a_.padded_in_features(),
                    [&](int64_t output, int64_t outputs, BFloat16* tile) {
                      for (int64_t i = 0; i < outputs; ++i, tile += V::kTileInputs) {
                        write_output(output + i, tile);
                      }
                    });
  }

 private:
  // By vectors of weights, for a whole number of tiles in a group tile.
  template <int64_t kN, int64_t kM>
  int64_t expand(TileChunk<V>& chunk, int64_t begin, int64_t end) const {
    constexpr int64_t kTiles = 8 * kM / V::kTileInputs;
    const int64_t group_tiles = a_.group_tiles();
    for (; begin < end && chunk.has_room(group_tiles * kTiles); begin += V::kTileOutputs) {
      BFloat16* tile = chunk.weights();
      const auto first = a_.row_of((uint64_t)begin, 0, group_tiles * 8, kN, kM == 4 ? 2 : 4);
      const BFloat16* values = first.values;
      const uint8_t* positions = first.positions;
      for (int64_t t = 0; t < group_tiles; ++t, tile += kTiles * V::kTileWeights) {
        for (int64_t g = 0; g < 8; ++g) {
          V::template expand<kN>(values, positions, tile + g * V::kTileInputs);
          values += 16 * kN;
          positions += 2 * kN * (kM == 4 ? 2 : 4);
        }
      }
      chunk.keep_strip(group_tiles * kTiles, nullptr);
    }
    return begin;
  }

  void write_output(int64_t output, BFloat16* tile) const {
    const int64_t n = a_.n, m = a_.m, bits = a_.position_bits();
    const int64_t row_tile = a_.group_tiles() * 8;
    for (int64_t t = 0; t < a_.group_tiles(); ++t) {
      const auto row = a_.row_of((uint64_t)output, t, row_tile, n, bits);
      for (int64_t group = 0; group < 8; ++group) {
        const int64_t q = group % 4, half = group / 4;
        const BFloat16* const w = row.values + (q * 2 + half) * 2 * n;
        const uint64_t first = uint64_t((t * 8 + group) * m);
        for (int64_t i = 0; i < n; ++i) {
          const int64_t bit = ((half * 2 * 4 + q) * n + i) * bits;
          const uint64_t position = row.positions[bit / 8] >> bit % 8 & ((1 << bits) - 1);
          tile[place_in_tiles<V>(first + position)] = w[i];
        }
      }
    }
  }

  const Matrix& a_;
};
