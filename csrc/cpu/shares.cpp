#include "cpu/shares.h"

namespace sparsekern {
namespace {

constexpr int64_t kBatchFloats = 1 << 20;  // packed activations of a batch: 4 MiB a thread
// Spans or sums with their cursors, and the padding of rows.
constexpr int64_t kFixedFloats = max64(2 * kMostChunkRows, kMostCells + kMostCursors) + 8 * 1024;

// Pairs, the rows of their inputs, two for four outputs at least, and their strips; or, for single
// rows, sums, cursors and pairs of a K-tile. And panels, with a row of zeros, in which two bfloat16
// fill a float.
int64_t pairs_scratch_floats(int64_t padded_inputs, int64_t tokens) {
  const int64_t batch = ceil_div(min64(tokens, pairs_batch(padded_inputs)), 32) * 32 + 32;
  const int64_t chunk = pairs_in_chunk(padded_inputs) * 3 / 2 + 2 * kPairsSlack + 8 * kMostStrips;
  return max64(chunk, kMostCells + kMostCursors + kMostExpanded / 2) +
         batch * (padded_inputs + 1) / 2;
}

// What a TileChunk holds; and panels, with two inputs of zeros.
int64_t tiles_scratch_floats(int64_t padded_inputs, int64_t tokens) {
  const int64_t inputs = whole_tiles(padded_inputs);
  const int64_t batch = ceil_div(min64(tokens, tiles_batch(inputs)), 32) * 32 + 32;
  return (tile_weights_in_chunk(inputs) + dense_weights_of_tiles(inputs)) / 2 +
         tile_units_in_chunk(inputs) + tile_marks(inputs) / 4 + 8 * kMostStrips +
         batch * (inputs + 3) / 2;
}

}  // namespace

int64_t kernel_scratch_floats(const KernelInfo& kernel, int64_t padded_inputs, int64_t tokens,
                              int64_t bands) {
  if (kernel.family == KernelFamily::kTiles) return tiles_scratch_floats(padded_inputs, tokens);
  if (kernel.numbers == Numbers::kBFloat16) return pairs_scratch_floats(padded_inputs, tokens);
  const int64_t panels = ceil_div(tokens, kernel.panel);
  const int64_t panel_floats = padded_inputs * min64(kernel.panel, ceil_div(tokens, 16) * 16);
  return kFixedFloats + bands + max64(panel_floats, min64(panels * panel_floats, kBatchFloats));
}

Grid::Grid(const KernelInfo& kernel, int64_t stored, double density, int64_t padded_inputs,
           int64_t tokens, int64_t threads) {
  // Activations are packed once, and tiles made of weights for every batch of a part's tokens,
  // which takes half as long again for a stored weight, or longer.
  const auto moved = [&](int64_t parts) {
    const int64_t part = ceil_div(tokens, parts);
    const int64_t batches = ceil_div(part, tiles_batch(padded_inputs));
    return 2 * part * padded_inputs + 3 * batches * ceil_div(stored * parts, threads);
  };
  // A longer panel than that is so long for the sake of its sums, and not cut short.
  const int64_t panel =
      kernel.family == KernelFamily::kSingle ? single_panel(kernel.panel, density) : kernel.panel;
  const int64_t least = panel > kShortPanel ? panel : min64(panel, 64);
  token_parts = 1;
  for (int64_t parts = 2; parts <= threads; ++parts) {
    if (threads % parts != 0 || tokens < parts * least) continue;
    if (kernel.family != KernelFamily::kTiles || moved(parts) < moved(token_parts)) {
      token_parts = parts;
    }
  }
  band_parts = threads / token_parts;
}

}  // namespace sparsekern
