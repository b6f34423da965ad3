// What kernels read of a BlockProduct: its groups, block rows of the product, and their entries.
#pragma once

#include <stdint.h>

#include "cuda/block_product.h"
#include "cuda/ptx/memory.h"

namespace sparsekern::cuda::tile {

constexpr int kSliceInputs = 16;

// Inputs of the product that a block has.
template <bool kTransposed>
__device__ inline int depth(const BlockProduct<kTransposed>& p) {
  return kTransposed ? p.weight.rows : p.weight.cols;
}

template <bool kTransposed>
__device__ inline int slices(const BlockProduct<kTransposed>& p) {
  return depth(p) / kSliceInputs;
}

// A group's entries are count() from first() on.
template <bool kTransposed>
__device__ inline int first(const BlockProduct<kTransposed>& p, int group) {
  if constexpr (kTransposed) return group * p.weight.block_rows;
  return ptx::load(p.weight.offsets + group);
}

template <bool kTransposed>
__device__ inline int count(const BlockProduct<kTransposed>& p, int group) {
  if constexpr (kTransposed) return ptx::load(p.transpose.counts + group);
  return ptx::load(p.weight.offsets + (group + 1)) - ptx::load(p.weight.offsets + group);
}

// Where an entry's inputs begin, in blocks.
template <bool kTransposed>
__device__ inline int column(const BlockProduct<kTransposed>& p, int entry) {
  if constexpr (kTransposed) return ptx::load(p.transpose.block_rows + entry);
  return ptx::load(p.weight.columns + entry);
}

// Its block in the weight.
template <bool kTransposed>
__device__ inline int block(const BlockProduct<kTransposed>& p, int entry) {
  if constexpr (kTransposed) return ptx::load(p.transpose.blocks + entry);
  return entry;
}

}  // namespace sparsekern::cuda::tile
