// How the host launches a kernel of few tokens.
#pragma once

#include "cuda/decode.h"
#include "cuda/launch.inl.h"

namespace sparsekern::cuda {

// `kernel`: of thread blocks that each make a strip of kTokens tokens, or a part of one.
template <int kTokens, class Product>
cudaError_t launch_decode(void (*kernel)(Product), int64_t strips, uint32_t shared_bytes,
                          const Product& p, Number number, cudaStream_t stream) {
  const Grid grid{strips, ceil_div(p.call.tokens, kTokens), p.call.split.count};
  const cudaError_t error = launch(kernel, grid, kDecodeWarps * 32, shared_bytes, p, stream);
  if (error != cudaSuccess || p.call.split.count == 1) return error;
  return launch_add_partials(p.call, number, stream);
}

}  // namespace sparsekern::cuda
