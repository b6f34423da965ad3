// What kernels are given: places in global memory and sizes, and nothing of torch.
#pragma once

#include <stdint.h>

#include "core/view.h"
#include "cuda/ptx/global.h"

namespace sparsekern::cuda {

// The sums of few tokens by several thread blocks that share the inputs of a strip: each leaves
// what it has, and add_partials.cu adds them up.
struct Split {
  ptx::Global<float> partials = {};  // [count, tokens, stride], or null
  int64_t stride = 0;                // the outputs, and what pads the last strip
  int count = 1;                     // of thread blocks to a strip

  __device__ ptx::Global<float> at(int64_t part, int64_t tokens, int64_t token,
                                   int64_t output) const {
    return partials + ((part * tokens + token) * stride + output);
  }
};

// y = activation(x W^T + bias), all of one 16-bit dtype. Rows of x begin at multiples of 16 bytes,
// and so does y if `outputs` is a multiple of 8.
struct Call {
  ptx::Global<const uint16_t> x;     // [tokens, inputs]
  int64_t x_stride;                  // numbers from one token to the next, a multiple of 8
  ptx::Global<uint16_t> y;           // [tokens, outputs]
  ptx::Global<const uint16_t> bias;  // [outputs], or null
  int64_t tokens, inputs, outputs;   // inputs: a multiple of 8, zeros behind the weight's own
  Activation activation;
  Split split = {};
};

// A weight in blocks of `rows` outputs and `cols` inputs, both multiples of 16, for a product with
// it or with its transpose (sparsekern/layouts/block.py).
struct Blocks {
  ptx::Global<const uint16_t> values;   // [blocks, cols, rows]
  ptx::Global<const uint16_t> columns;  // [blocks]
  ptx::Global<const int32_t> offsets;   // [block rows + 1]
  int rows, cols;
  int block_rows, block_columns;
};

// The blocks of each block column, for products with the transpose: of column j the first
// counts[j] of [block_rows] entries from j * block_rows on, by ascending block rows.
struct BlockColumns {
  ptx::Global<const int32_t> counts;      // [block columns]
  ptx::Global<const int32_t> block_rows;  // [block columns, block rows]
  ptx::Global<const int32_t> blocks;      // the same: numbers in Blocks
};

}  // namespace sparsekern::cuda
