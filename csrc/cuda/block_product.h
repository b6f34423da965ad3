// The products that kernels of blocks make: with the weight, or with its transpose, whose block
// rows are the weight's block columns.
#pragma once

#include <stdint.h>

#include "cuda/call.h"

namespace sparsekern::cuda {

// A strip is as many outputs of the product as a kernel takes of a block at once; a slice is 16 of
// the inputs of a block. A group is a block row of the product, an entry a block that is stored
// there.
template <bool kTransposed>
struct BlockProduct {
  static constexpr int kSliceInputs = 16;

  Call call;
  Blocks weight;
  BlockColumns transpose;  // if kTransposed
  int groups;              // block rows of the product
  int strips;              // in each of them

  __device__ int slices() const { return (kTransposed ? weight.rows : weight.cols) / kSliceInputs; }
  __device__ int depth() const { return kTransposed ? weight.rows : weight.cols; }

  // The entries of a group are those from first() to first() + count().
  __device__ int first(int group) const {
    if constexpr (kTransposed) return group * weight.block_rows;
    return ptx::load(weight.offsets + group);
  }
  __device__ int count(int group) const {
    if constexpr (kTransposed) return ptx::load(transpose.counts + group);
    return ptx::load(weight.offsets + (group + 1)) - ptx::load(weight.offsets + group);
  }
  __device__ int column(int entry) const {
    if constexpr (kTransposed) return ptx::load(transpose.block_rows + entry);
    return ptx::load(weight.columns + entry);
  }
  __device__ int block(int entry) const {
    if constexpr (kTransposed) return ptx::load(transpose.blocks + entry);
    return entry;
  }
};

// With strips of so many outputs.
template <bool kTransposed>
BlockProduct<kTransposed> block_product(const Call& call, const Blocks& weight,
                                        const BlockColumns& transpose, int height) {
  const int outputs = kTransposed ? weight.cols : weight.rows;
  const int groups = kTransposed ? weight.block_columns : weight.block_rows;
  return {call, weight, transpose, groups, outputs / height};
}

}  // namespace sparsekern::cuda
