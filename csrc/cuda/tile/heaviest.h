// The order in which tiles of outputs are made: those with most blocks first, so that the last ones
// to run are short.
#pragma once

#include <stdint.h>

#include "cuda/ptx/memory.h"
#include "cuda/tile/block_entries.h"

namespace sparsekern::cuda::tile {

// Beyond so many tiles the last ones weigh little, and they are taken as they come; and each thread
// block compares all with all.
constexpr int kMostOrdered = 256;
constexpr uint32_t kHeaviestBytes = (kMostOrdered + 4) * 4;

// The tile of `kStrips` strips with the rank-th most blocks, of those of equal number the first.
// `scratch`: kHeaviestBytes, free again afterwards. All kThreads threads.
template <int kThreads, int kStrips, class Product>
__device__ inline int heaviest(const Product& product, int rank, ptx::Shared scratch) {
  const int strips = product.groups * product.strips;
  const int tiles = (strips + kStrips - 1) / kStrips;
  if (tiles > kMostOrdered) return rank;
  for (int tile = int(threadIdx.x); tile < tiles; tile += kThreads) {
    int blocks = 0;
    for (int strip = tile * kStrips; strip < (tile + 1) * kStrips && strip < strips; ++strip) {
      blocks += count(product, strip / product.strips);
    }
    ptx::store(scratch + 4 * tile, blocks);
  }
  __syncthreads();
  const ptx::Shared found = scratch + 4 * kMostOrdered;
  for (int tile = int(threadIdx.x); tile < tiles; tile += kThreads) {
    const int own = ptx::load<int>(scratch + 4 * tile);
    int before = 0;
    for (int other = 0; other < tiles; ++other) {
      const int blocks = ptx::load<int>(scratch + 4 * other);
      before += blocks > own || (blocks == own && other < tile);
    }
    if (before == rank) ptx::store(found, tile);
  }
  __syncthreads();
  const int tile = ptx::load<int>(found);
  __syncthreads();
  return tile;
}

}  // namespace sparsekern::cuda::tile
