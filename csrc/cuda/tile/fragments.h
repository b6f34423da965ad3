// Where operands of mma lie in tiles of shared memory, in rows of kChunks chunks (swizzle.h), as
// lanes give it to ldmatrix: lane l that of row l % 8 of matrix l / 8. Rows and columns count
// 16-bit numbers.
#pragma once

#include <stdint.h>

#include "cuda/ptx/ldmatrix.h"
#include "cuda/tile/swizzle.h"

namespace sparsekern::cuda::tile {

__device__ inline uint32_t matrix_of_lane() { return threadIdx.x % 32 / 8; }
__device__ inline uint32_t line_of_lane() { return threadIdx.x % 8; }

// For ldmatrix: a of 16 x 16 from a tile whose rows are rows of a. For ldmatrix_trans: b of 16 x
// 16, of two products side by side, from a tile whose rows are rows of b: b[0] and b[1] of the
// first product, b[2] and b[3] of the second.
template <int kChunks>
__device__ inline uint32_t lane_down(uint32_t row, uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  return swizzled<kChunks>(row + matrix % 2 * 8 + line_of_lane(),
                           column / kChunkNumbers + matrix / 2);
}

// For ldmatrix_trans: a of 16 x 16 from a tile whose rows are columns of a. For ldmatrix: b of two
// products from a tile whose rows are columns of b.
template <int kChunks>
__device__ inline uint32_t lane_across(uint32_t row, uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  return swizzled<kChunks>(row + matrix / 2 * 8 + line_of_lane(),
                           column / kChunkNumbers + matrix % 2);
}

// For ldmatrix: b of 32 x 8, of one product with twice the depth, from a tile whose rows are
// columns of b.
template <int kChunks>
__device__ inline uint32_t lane_deep(uint32_t row, uint32_t column) {
  return swizzled<kChunks>(row + line_of_lane(), column / kChunkNumbers + matrix_of_lane());
}

// The same of 16 x 8, twice: b[0] and b[1] count.
template <int kChunks>
__device__ inline uint32_t lane_single(uint32_t row, uint32_t column) {
  return swizzled<kChunks>(row + line_of_lane(), column / kChunkNumbers + matrix_of_lane() % 2);
}

}  // namespace sparsekern::cuda::tile
