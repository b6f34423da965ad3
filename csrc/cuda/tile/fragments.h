// Operands of mma from tiles of shared memory, in rows of kChunks chunks (swizzle.h). Rows and
// columns count 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
#pragma once

#include <stdint.h>

#include "cuda/ptx/ldmatrix.h"
#include "cuda/tile/swizzle.h"

namespace sparsekern::cuda::tile {

__device__ inline uint32_t matrix_of_lane() { return threadIdx.x % 32 / 8; }
__device__ inline uint32_t line_of_lane() { return threadIdx.x % 8; }

// a: 16 x 16 from a tile whose rows are rows of a.
template <int kChunks>
__device__ inline void load_a(uint32_t (&a)[4], ptx::Shared tile, uint32_t row, uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  ptx::ldmatrix(a, tile + swizzled<kChunks>(row + matrix % 2 * 8 + line_of_lane(),
                                            column / kChunkNumbers + matrix / 2));
}

// a: 16 x 16 from a tile whose rows are columns of a.
template <int kChunks>
__device__ inline void load_a_trans(uint32_t (&a)[4], ptx::Shared tile, uint32_t row,
                                    uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  ptx::ldmatrix_trans(a, tile + swizzled<kChunks>(row + matrix / 2 * 8 + line_of_lane(),
                                                  column / kChunkNumbers + matrix % 2));
}

// b: 16 x 16, of two products side by side, from a tile whose rows are columns of b: b[0] and b[1]
// of the first product, b[2] and b[3] of the second.
template <int kChunks>
__device__ inline void load_b_pair(uint32_t (&b)[4], ptx::Shared tile, uint32_t row,
                                   uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  ptx::ldmatrix(b, tile + swizzled<kChunks>(row + matrix / 2 * 8 + line_of_lane(),
                                            column / kChunkNumbers + matrix % 2));
}

// The same from a tile whose rows are rows of b.
template <int kChunks>
__device__ inline void load_b_pair_trans(uint32_t (&b)[4], ptx::Shared tile, uint32_t row,
                                         uint32_t column) {
  const uint32_t matrix = matrix_of_lane();
  ptx::ldmatrix_trans(b, tile + swizzled<kChunks>(row + matrix % 2 * 8 + line_of_lane(),
                                                  column / kChunkNumbers + matrix / 2));
}

// b: 32 x 8, of one product with twice the depth, from a tile whose rows are columns of b.
template <int kChunks>
__device__ inline void load_b_deep(uint32_t (&b)[4], ptx::Shared tile, uint32_t row,
                                   uint32_t column) {
  ptx::ldmatrix(
      b, tile + swizzled<kChunks>(row + line_of_lane(), column / kChunkNumbers + matrix_of_lane()));
}

// b: 16 x 8 twice, for a single product: as load_b_pair, of which b[0] and b[1] count.
template <int kChunks>
__device__ inline void load_b_single(uint32_t (&b)[4], ptx::Shared tile, uint32_t row,
                                     uint32_t column) {
  ptx::ldmatrix(b, tile + swizzled<kChunks>(row + line_of_lane(),
                                            column / kChunkNumbers + matrix_of_lane() % 2));
}

}  // namespace sparsekern::cuda::tile
