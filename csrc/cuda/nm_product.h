// The product with a 2:4 weight in the order of tensor-core fragments (sparsekern/layouts/
// fragments.py): a tile is 16 outputs x 32 inputs, of which each of 32 lanes has 16 bytes of
// values.
#pragma once

#include <stdint.h>

#include "cuda/call.h"

namespace sparsekern::cuda {

struct NMProduct {
  static constexpr int kTileOutputs = 16, kTileInputs = 32;
  static constexpr uint32_t kValuesBytes = 32 * 16, kPositionsBytes = 8 * 2 * 4;
  static constexpr int kValuesChunks = kValuesBytes / 16, kPositionsChunks = kPositionsBytes / 16;

  Call call;
  ptx::Global<const uint16_t> values;    // [row tiles][group tiles][32][8]
  ptx::Global<const uint8_t> positions;  // [row tiles][group tiles][8][2] words
  int row_tiles, group_tiles;

  // Chunk i of 16 bytes of a tile.
  __device__ ptx::Global<const uint4> values_chunk(int row_tile, int group_tile, int i) const {
    const int64_t tile = int64_t{row_tile} * group_tiles + group_tile;
    return values.template as<const uint4>() + (tile * kValuesChunks + i);
  }
  __device__ ptx::Global<const uint4> positions_chunk(int row_tile, int group_tile, int i) const {
    const int64_t tile = int64_t{row_tile} * group_tiles + group_tile;
    return positions.template as<const uint4>() + (tile * kPositionsChunks + i);
  }
};

}  // namespace sparsekern::cuda
