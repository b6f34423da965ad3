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
  static constexpr bool kIsTransposed = kTransposed;

  Call call;
  Blocks weight;
  BlockColumns transpose;  // if kTransposed
  int groups;              // block rows of the product
  int strips;              // in each of them
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
