// Where 16-byte chunks lie in a tile of shared memory, so that neither rows nor columns of chunks
// meet in a bank: ldmatrix reads the same chunk of eight consecutive rows at once.
#pragma once

#include <stdint.h>

namespace sparsekern::cuda::tile {

constexpr int kChunkBytes = 16, kChunkNumbers = 8;

// In bytes, for rows of kChunks chunks. A line of 128 bytes holds all banks once. What comes 16
// rows later lies as much later, and chunks whose numbers differ in bits lie apart by those bits:
// from one address the others are an addition or an exclusive or away.
template <int kChunks>
__device__ inline uint32_t swizzled(uint32_t row, uint32_t chunk) {
  static_assert(kChunks == 2 || kChunks == 4 || kChunks % 8 == 0);
  if constexpr (kChunks >= 8) {
    return (row * kChunks + (chunk ^ (row & 7))) * kChunkBytes;
  } else {
    constexpr int kRowsInLine = 8 / kChunks;
    const uint32_t line = row / kRowsInLine, place = row % kRowsInLine * kChunks + chunk;
    return (line * 8 + (place ^ (line & (kChunks - 1)))) * kChunkBytes;
  }
}

}  // namespace sparsekern::cuda::tile
