// Kernels of bfloat16 that multiply whole tiles: strips of 16 outputs by up to 64 tokens. Included
// inside an ISA region.
//
//   for a batch of tokens:       pack them, panel by panel, as pairs of inputs
//     for a chunk of outputs:    make tiles of its weights, which then stay in L2
//       for a panel:             strip by strip, tile by tile; two strips at a time that take the
//                                same inputs
//
// With zeros in it, a tile is multiplied as a dense one would be: a number in x that is not finite
// may reach outputs that have no weight for it, as it does in a dense product.

// Tiles of a panel as it lies: the next one at each step, or those that are listed.
template <class V>
class WindowsOfPanel {
 public:
  WindowsOfPanel(const BFloat16* panel, int64_t width, const TileStrip& strip)
      : panel_(panel), tile_(V::kTilePairs * width), windows_(strip.units) {
    V::written(panel);
  }

  SPARSEKERN_INLINE const BFloat16* operator()(int64_t step) const {
    return panel_ + (windows_ == nullptr ? step : windows_[step]) * tile_;
  }

 private:
  const BFloat16* panel_;
  int64_t tile_;
  const uint32_t* windows_;
};

// Tiles [pairs][MB][16 tokens][2] of the rows of a panel that are listed: each is a pair, or two
// make one. They are gathered while the tiles before them are multiplied.
template <class V, bool kPairs, int MB>
class GatheredOfPanel {
 public:
  GatheredOfPanel(const BFloat16* panel, int64_t width, const TileStrip& strip)
      : panel_(panel), width_(width), rows_(strip.units), steps_(strip.steps) {
    if (steps_ > 0) gather(0);
  }

  SPARSEKERN_INLINE const BFloat16* operator()(int64_t step) {
    V::written(tiles_);  // not before the tile that lay there has been read
    if (step + 1 < steps_) gather(step + 1);
    V::written(tiles_);
    return tiles_[step % 2];
  }

 private:
  SPARSEKERN_INLINE void gather(int64_t step) {
    BFloat16* to = tiles_[step % 2];
    const uint32_t* rows = rows_ + step * V::kTilePairs * (kPairs ? 1 : 2);
    SPARSEKERN_UNROLL
    for (int i = 0; i < V::kTilePairs; ++i, to += MB * V::kLine) {
      if constexpr (kPairs) {
        const BFloat16* const x = panel_ + rows[i] * width_;
        SPARSEKERN_UNROLL
        for (int m = 0; m < MB; ++m) V::store(to + m * V::kLine, V::load(x + m * V::kLine));
      } else {
        const BFloat16* const x = panel_ + rows[2 * i] * width_;
        const BFloat16* const other = panel_ + rows[2 * i + 1] * width_;
        SPARSEKERN_UNROLL
        for (int m = 0; m < MB; m += 2) {
          const auto a = V::load(x + m / 2 * V::kLine), b = V::load(other + m / 2 * V::kLine);
          V::store(to + m * V::kLine, V::pair_low(a, b));
          if (m + 1 < MB) V::store(to + (m + 1) * V::kLine, V::pair_high(a, b));
        }
      }
    }
  }

  const BFloat16* panel_;
  int64_t width_;
  const uint32_t* rows_;
  int64_t steps_;
  alignas(64) BFloat16 tiles_[2][V::kTilePairs * MB * V::kLine];
};

template <class V, class Weights>
struct TilesFamily {
  using Matrix = typename Weights::Matrix;
  using Call = CallOf<BFloat16>;
  using Wide = typename V::Wide;
  using Pairs = typename V::Pairs;
  static constexpr KernelFamily kFamily = KernelFamily::kTiles;
  static constexpr int kMostBlocks = 4;  // tiles of tokens
  static constexpr int64_t kPanel = kMostBlocks * V::kLanes;
  static constexpr int64_t kTileOutputs = V::kTileOutputs, kTileLanes = V::kLanes;
  static constexpr int64_t kQuantum = V::kLanes;

  static void run_share(const Matrix& a, const Call& call, const Share& share) {
    const Weights weights(a);
    const auto before = V::shape_tiles();
    if constexpr (Weights::kMayGather) {
      if (!weights.gathers()) {
        run<false, true>(a, weights, call, share);
      } else if (a.input_quantum() % 2 == 0) {
        run<true, true>(a, weights, call, share);
      } else {
        run<true, false>(a, weights, call, share);
      }
    } else {
      run<false, true>(a, weights, call, share);
    }
    V::reshape_tiles(before);
  }

 private:
  using Sums = float[16][16];  // of 16 outputs and tokens

  template <bool kGathers, bool kPairs>
  static void run(const Matrix& a, const Weights& weights, const Call& call, const Share& share) {
    using Panel = PairsPanel<V, kPairs>;
    const int64_t tile_inputs = whole_tiles(a.padded_in_features());
    TileChunk<V> chunk(share.scratch, tile_inputs);
    if constexpr (Weights::kMayGather) chunk.zero(tile_inputs);
    BFloat16* const packed = static_cast<BFloat16*>(chunk.end());
    const int64_t panel_inputs = tile_inputs + 2;  // the last ones are zeros, to gather
    const int64_t total = share.token_end - share.token_begin;
    const int64_t batches = ceil_div(total, tiles_batch(tile_inputs));
    const int64_t outputs_begin = share.row_begin * a.band_outputs();
    const int64_t outputs_end = min64(share.row_end * a.band_outputs(), a.out_features);
    for (int64_t batch = 0; batch < batches; ++batch) {
      const int64_t first = share.token_begin + split_evenly<TilesFamily>(total, batch, batches);
      const int64_t tokens =
          share.token_begin + split_evenly<TilesFamily>(total, batch + 1, batches) - first;
      const int64_t panels = ceil_div(tokens, kPanel);
      int64_t end;
      for (int64_t begin = outputs_begin; begin < outputs_end; begin = end) {
        chunk.clear();
        end = weights.fill(chunk, begin, outputs_end);
        BFloat16* panel = packed;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t t = split_evenly<TilesFamily>(tokens, p, panels);
          const int64_t count = split_evenly<TilesFamily>(tokens, p + 1, panels) - t;
          if (begin == outputs_begin) {
            Panel::pack(call.x + (first + t) * call.x_stride, call.x_stride, count, a.in_features,
                        panel_inputs, panel);
          }
          run_panel<kGathers, kPairs>(chunk.strips(), call, begin, min64(end, outputs_end), panel,
                                      count, call.y + (first + t) * call.y_stride);
          panel += Panel::rows(panel_inputs) * Panel::width(count);
        }
      }
    }
  }

  template <bool kGathers, bool kPairs, int MB = kMostBlocks>
  static void run_panel(const TileStrip* strip, const Call& call, int64_t begin, int64_t end,
                        const BFloat16* panel, int64_t tokens, BFloat16* y) {
    if (ceil_div(tokens, V::kLanes) == MB) {
      run_strips<kGathers, kPairs, MB>(strip, call, begin, end, panel, tokens, y);
    } else if constexpr (MB > 1) {
      run_panel<kGathers, kPairs, MB - 1>(strip, call, begin, end, panel, tokens, y);
    }
  }

  template <bool kGathers, bool kPairs, int MB>
  static SPARSEKERN_NOINLINE void multiply(const TileStrip& strip, const BFloat16* panel,
                                           Sums* sums) {
    constexpr int64_t kWidth = PairsPanel<V, kPairs>::width(MB * V::kLanes);
    if constexpr (kGathers) {
      GatheredOfPanel<V, kPairs, MB> inputs(panel, kWidth, strip);
      V::template multiply<MB>(strip.weights, strip.steps, inputs, MB * V::kLine, sums);
    } else {
      const WindowsOfPanel<V> inputs(panel, kWidth, strip);
      V::template multiply<MB>(strip.weights, strip.steps, inputs, kWidth, sums);
    }
  }

  // For two strips that take the same inputs: kTiles tiles of tokens of a panel of MB, from `m` on.
  template <bool kGathers, bool kPairs, int MB, int kTiles>
  static SPARSEKERN_NOINLINE void multiply_two(const TileStrip& strip, const BFloat16* panel, int m,
                                               Sums* sums, Sums* other_sums) {
    constexpr int64_t kWidth = PairsPanel<V, kPairs>::width(MB * V::kLanes);
    panel += kPairs ? m * V::kLine : m / 2 * V::kLine;
    if constexpr (kGathers) {
      GatheredOfPanel<V, kPairs, kTiles> inputs(panel, kWidth, strip);
      V::template multiply_two<kTiles>(strip.weights, strip.steps, inputs, kTiles * V::kLine,
                                       sums + m, other_sums + m);
    } else {
      const WindowsOfPanel<V> inputs(panel, kWidth, strip);
      V::template multiply_two<kTiles>(strip.weights, strip.steps, inputs, kWidth, sums + m,
                                       other_sums + m);
    }
  }

  // Outputs [begin, end), a cache line of them at a time.
  template <bool kGathers, bool kPairs, int MB>
  static void run_strips(const TileStrip* strip, const Call& call, int64_t begin, int64_t end,
                         const BFloat16* panel, int64_t tokens, BFloat16* y) {
    alignas(64) Sums sums[2][MB];
    alignas(64) Pairs cells[V::kLine / 2 * MB];
    for (int64_t n = begin; n < end;) {
      const int64_t most = n % V::kLine < V::kTileOutputs ? V::kLine : V::kTileOutputs;
      const int64_t outputs = min64(end - n, most);
      const int strips = outputs > V::kTileOutputs ? 2 : 1;
      if (strips == 2 && strip[0].units == strip[1].units && strip[0].steps == strip[1].steps) {
        for (int m = 0; m + 1 < MB; m += 2) {
          multiply_two<kGathers, kPairs, MB, 2>(*strip, panel, m, sums[0], sums[1]);
        }
        if constexpr (MB % 2 == 1) {
          multiply_two<kGathers, kPairs, MB, 1>(*strip, panel, MB - 1, sums[0], sums[1]);
        }
      } else {
        for (int i = 0; i < strips; ++i) {
          multiply<kGathers, kPairs, MB>(strip[i], panel, sums[i]);
        }
      }
      for (int i = 0; i < strips; ++i) {
        round<MB>(sums[i], call, n + i * V::kTileOutputs,
                  min64(V::kTileOutputs, outputs - i * V::kTileOutputs),
                  cells + i * V::kTileOutputs / 2 * MB);
      }
      write_pairs<V, MB>(cells, outputs, tokens, y + n, call.y_stride);
      n += outputs;
      strip += strips;
    }
  }

  // Sums of 16 outputs, of which `outputs` exist, as pairs of rounded ones.
  template <int MB>
  static SPARSEKERN_NOINLINE void round(const Sums* sums, const Call& call, int64_t output,
                                        int64_t outputs, Pairs* cells) {
    float bias[V::kTileOutputs] = {};
    for (int64_t i = 0; call.bias != nullptr && i < outputs; ++i) {
      bias[i] = V::widened(call.bias[output + i]);
    }
    for (int m = 0; m < MB; ++m) {
      const auto rounded = [&](auto finish) {
        SPARSEKERN_UNROLL
        for (int i = 0; i < V::kTileOutputs; i += 2) {
          cells[i / 2 * MB + m] = V::round_pairs(finish(i), finish(i + 1));
        }
      };
      const auto sum = [&](int i) {
        return Wide::add(Wide::load(sums[m][i]), Wide::splat(bias + i));
      };
      if (call.activation == Activation::kNone) {
        rounded(sum);
      } else {
        rounded([&](int i) { return activate<Wide>(sum(i), call.activation); });
      }
    }
  }
};
