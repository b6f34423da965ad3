// The end of a product of few tokens: the sums of the warps, each of which took some of the inputs,
// are added up in the order of the warps and written: to y, or to the partial sums of a split.
#pragma once

#include <stdint.h>

#include "cuda/tile/epilogue.h"

namespace sparsekern::cuda::tile {

template <int kWarps, int kOutputTiles, int kTokenTiles>
constexpr uint32_t kReduceBytes = kWarps * kOutputTiles * kTokenTiles * 4 * 32 * 4;

// `scratch`: kReduceBytes, which nobody reads or writes any more. `output` and `token`: the first
// of the thread block's. All kWarps x 32 threads.
template <class Number, int kWarps, int kOutputTiles, int kTokenTiles>
__device__ inline void reduce_and_write(const Sums<kOutputTiles, kTokenTiles>& sums,
                                        ptx::Shared scratch, const Call& call, int64_t output,
                                        int64_t token) {
  constexpr int kOutputs = kOutputTiles * 16, kTokens = kTokenTiles * 8;
  constexpr uint32_t kWarpBytes = kReduceBytes<1, kOutputTiles, kTokenTiles>;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < kOutputTiles * kTokenTiles * 4; ++n) {
    const float sum = sums[n / 4 / kTokenTiles][n / 4 % kTokenTiles][n % 4];
    ptx::store(scratch + (warp * kWarpBytes + (n * 32 + lane) * 4), sum);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < kOutputs * kTokens; e += kWarps * 32) {
    const int row = e % kOutputs, column = e / kOutputs;
    if (token + column >= call.tokens) continue;
    // Where mma leaves that element.
    const int n = (row / 16 * kTokenTiles + column / 8) * 4 + row % 16 / 8 * 2 + column % 2;
    const int owner = row % 8 * 4 + column % 8 / 2;
    float y = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      y += ptx::load<float>(scratch + (w * kWarpBytes + (n * 32 + owner) * 4));
    }
    if (call.split.count > 1) {
      // Those that pad the last strip too: they are zeros, and read in eights.
      ptx::store(call.split.at(blockIdx.z, call.tokens, token + column, output + row), y);
      continue;
    }
    if (output + row >= call.outputs) continue;
    y = activated(y + bias_of<Number>(call, output + row), call.activation);
    ptx::store(call.y + ((token + column) * call.outputs + output + row),
               static_cast<uint16_t>(ptx::round_pair<Number>(y, 0)));
  }
}

}  // namespace sparsekern::cuda::tile
