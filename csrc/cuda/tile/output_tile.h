// The tile of the kernels of many tokens, and the parts of it that warps hold: 64 outputs x 32
// tokens each, two of them across the outputs and four across the tokens.
#pragma once

#include <stdint.h>

#include "cuda/call.h"
#include "cuda/tile/epilogue.h"

namespace sparsekern::cuda::tile {

struct OutputTile {
  static constexpr int kThreads = 256;
  static constexpr int kOutputs = 128, kTokens = 128;
  static constexpr int kWarpOutputs = 64, kWarpTokens = 32;
  static constexpr int kOutputTiles = kWarpOutputs / 16, kTokenTiles = kWarpTokens / 8;  // of mma
  static constexpr uint32_t kStagingBytes = kOutputs * kTokens * 2;

  using WarpSums = Sums<kOutputTiles, kTokenTiles>;

  // The first of the warp's, in the tile.
  static __device__ uint32_t warp_output() {
    return threadIdx.x / 32 / (kTokens / kWarpTokens) * kWarpOutputs;
  }
  static __device__ uint32_t warp_token() {
    return threadIdx.x / 32 % (kTokens / kWarpTokens) * kWarpTokens;
  }

  // Bias, activation, and rows of tokens. `staging`: kStagingBytes that nobody reads or writes any
  // more. `output` and `token`: the tile's first.
  template <class Number>
  static __device__ void write(WarpSums& sums, ptx::Shared staging, const Call& call,
                               int64_t output, int64_t token) {
    finish<Number>(sums, call, output + warp_output());
    stage<Number, kOutputs / kChunkNumbers>(sums, staging, warp_token(),
                                            warp_output() / kChunkNumbers);
    __syncthreads();
    write_tile<kOutputs / kChunkNumbers, kTokens, kThreads>(staging, call, token, output);
  }
};

}  // namespace sparsekern::cuda::tile
