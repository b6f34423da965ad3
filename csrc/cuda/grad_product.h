// The gradient of the values of a block-sparse weight.
#pragma once

#include <stdint.h>

#include "cuda/call.h"

namespace sparsekern::cuda {

struct GradProduct {
  // A matrix of 16-bit numbers, a row each token; rows begin at multiples of 16 bytes.
  struct Rows {
    ptx::Global<const uint16_t> at;
    int64_t stride;   // numbers from one token to the next, a multiple of 8
    int64_t numbers;  // a multiple of 8, zeros behind the matrix's own
  };

  Rows x, grad;  // the inputs of the product, and the gradient of its outputs
  int64_t tokens;
  Blocks weight;  // without values
  int blocks;
  ptx::Global<uint16_t> grad_values;  // [blocks, cols, rows]
};

}  // namespace sparsekern::cuda
