// Weights of bfloat16 as tiles of 16 outputs x 32 inputs. Included inside an ISA region.

// What a strip of 16 outputs is multiplied with.
struct TileStrip {
  const BFloat16* weights;  // tiles [steps][16 outputs][32 inputs]
  // What each step takes of a panel: a tile of inputs [steps], or the next one if null; where
  // inputs are gathered, pairs of them, or inputs, [16 or 32 steps].
  const uint32_t* units;
  int64_t steps;
};

// Of the weights of consecutive outputs, as many as stay in L2; one strip at least.
template <class V>
class TileChunk {
 public:
  TileChunk(float* scratch, int64_t tile_inputs)
      : room_(tile_weights_in_chunk(tile_inputs)),
        weights_(reinterpret_cast<BFloat16*>(scratch)),
        dense_(weights_ + room_),
        units_(reinterpret_cast<uint32_t*>(dense_ + dense_weights_of_tiles(tile_inputs))),
        marks_(reinterpret_cast<uint8_t*>(units_ + tile_units_in_chunk(tile_inputs))),
        strips_(reinterpret_cast<TileStrip*>(marks_ + tile_marks(tile_inputs))) {
    static_assert(sizeof(TileStrip) <= 8 * sizeof(float), "scratch for strips");
    clear();
  }

  void clear() {
    next_weights_ = weights_;
    next_units_ = units_;
    next_strip_ = strips_;
  }

  const TileStrip* strips() const { return strips_; }
  void* end() const { return reinterpret_cast<float*>(strips_) + 8 * kMostStrips; }

  // Whether a strip of so many steps fits.
  bool has_room(int64_t steps) const {
    return next_strip_ == strips_ || (next_strip_ < strips_ + kMostStrips &&
                                      next_weights_ + steps * V::kTileWeights <= weights_ + room_);
  }

  // Where the tiles and units of the next strip go. There is room for units that are not kept then.
  BFloat16* weights() const { return next_weights_; }
  uint32_t* units() const { return next_units_; }
  // Zeros to work with, to be left as they were found: the weights of a strip, [inputs][16
  // outputs], with two inputs beyond that stay zero, and a mark for each input.
  void zero(int64_t tile_inputs) {
    __builtin_memset(dense_, 0, size_t(dense_weights_of_tiles(tile_inputs)) * sizeof(BFloat16));
    __builtin_memset(marks_, 0, size_t(tile_marks(tile_inputs)));
  }
  BFloat16* dense() const { return dense_; }
  uint8_t* marks() const { return marks_; }

  // Keeps a list of units that has been written, and what strips refer to it as.
  const uint32_t* keep_units(int64_t count) {
    const uint32_t* const list = next_units_;
    next_units_ += count;
    return list;
  }
  void keep_strip(int64_t steps, const uint32_t* list) {
    *next_strip_++ = {next_weights_, list, steps};
    next_weights_ += steps * V::kTileWeights;
  }

 private:
  int64_t room_;  // weights
  BFloat16 *weights_, *next_weights_, *dense_;
  uint32_t *units_, *next_units_;
  uint8_t* marks_;
  TileStrip *strips_, *next_strip_;
};
