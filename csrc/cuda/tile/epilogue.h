// The end of a product: bias, activation, and sums by outputs turned into rows of tokens.
#pragma once

#include <stdint.h>

#include "cuda/call.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/movmatrix.h"
#include "cuda/ptx/number.h"
#include "cuda/tile/swizzle.h"

namespace sparsekern::cuda::tile {

// NaN stays what it is.
__device__ inline float positive(float y) { return y > 0 ? y : y == y ? 0.f : y; }
__device__ inline float up_to_six(float y) { return y > 6 ? 6.f : positive(y); }

template <Activation kActivation>
__device__ inline float activated(float y) {
  if constexpr (kActivation == Activation::kRelu) return positive(y);
  if constexpr (kActivation == Activation::kGelu) return 0.5f * y * (1 + erff(y * 0.70710678f));
  if constexpr (kActivation == Activation::kSilu) return y / (1 + expf(-y));
  if constexpr (kActivation == Activation::kRelu6) return up_to_six(y);
  if constexpr (kActivation == Activation::kHardswish) return y * up_to_six(y + 3) / 6;
  return y;
}

__device__ inline float activated(float y, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return activated<Activation::kRelu>(y);
    case Activation::kGelu:
      return activated<Activation::kGelu>(y);
    case Activation::kSilu:
      return activated<Activation::kSilu>(y);
    case Activation::kRelu6:
      return activated<Activation::kRelu6>(y);
    case Activation::kHardswish:
      return activated<Activation::kHardswish>(y);
    default:
      return y;
  }
}

// The bias of an output, or zero.
template <class Number>
__device__ inline float bias_of(const Call& call, int64_t output) {
  if (call.bias.at == nullptr || output >= call.outputs) return 0;
  return ptx::widen<Number>(ptx::load(call.bias + output));
}

// A warp's sums of kOutputTiles x 16 outputs and kTokenTiles x 8 tokens, as mma leaves them.
template <int kOutputTiles, int kTokenTiles>
using Sums = float[kOutputTiles][kTokenTiles][4];

template <Activation kActivation, int kOutputTiles, int kTokenTiles>
__device__ inline void finish_as(Sums<kOutputTiles, kTokenTiles>& sums,
                                 const float (&bias)[kOutputTiles][2]) {
#pragma unroll
  for (int i = 0; i < kOutputTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        sums[i][j][n] = activated<kActivation>(sums[i][j][n] + bias[i][n / 2]);
      }
    }
  }
}

// Adds the bias and applies the activation. `output`: the first of the warp's.
template <class Number, int kOutputTiles, int kTokenTiles>
__device__ inline void finish(Sums<kOutputTiles, kTokenTiles>& sums, const Call& call,
                              int64_t output) {
  const int g = int(threadIdx.x) % 32 / 4;
  float bias[kOutputTiles][2];
#pragma unroll
  for (int i = 0; i < kOutputTiles; ++i) {
    bias[i][0] = bias_of<Number>(call, output + 16 * i + g);
    bias[i][1] = bias_of<Number>(call, output + 16 * i + g + 8);
  }
  switch (call.activation) {
    case Activation::kNone:
      return finish_as<Activation::kNone>(sums, bias);
    case Activation::kRelu:
      return finish_as<Activation::kRelu>(sums, bias);
    case Activation::kGelu:
      return finish_as<Activation::kGelu>(sums, bias);
    case Activation::kSilu:
      return finish_as<Activation::kSilu>(sums, bias);
    case Activation::kRelu6:
      return finish_as<Activation::kRelu6>(sums, bias);
    case Activation::kHardswish:
      return finish_as<Activation::kHardswish>(sums, bias);
  }
}

// Puts finished sums into the tile [tokens][kChunks chunks of outputs] of 16-bit numbers. `token`
// and `chunk`: the warp's first in the tile. No two lanes meet in a bank.
template <class Number, int kChunks, int kOutputTiles, int kTokenTiles>
__device__ inline void stage(const Sums<kOutputTiles, kTokenTiles>& sums, ptx::Shared tile,
                             uint32_t token, uint32_t chunk) {
  const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  __syncwarp();  // some lanes may have loaded a bias, others not
#pragma unroll
  for (int i = 0; i < kOutputTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = &sums[i][j][2 * half];
        const uint32_t of_token = ptx::movmatrix_trans(ptx::round_pair<Number>(pair[0], pair[1]));
        const uint32_t row = swizzled<kChunks>(token + 8 * j + g, chunk + 2 * i + half);
        ptx::store(tile + row + 4 * q, of_token);
      }
    }
  }
}

// Writes outputs from `first` on of a token to y: 16 bytes, or single numbers where the outputs do
// not end at such a chunk.
__device__ inline void write_chunk(const Call& call, int64_t token, int64_t first, uint4 numbers) {
  const ptx::Global<uint16_t> y = call.y + (token * call.outputs + first);
  if (call.outputs % kChunkNumbers == 0) {
    ptx::store(y.as<uint4>(), numbers);
    return;
  }
  const uint32_t words[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
#pragma unroll
  for (int n = 0; n < kChunkNumbers; ++n) {
    if (first + n < call.outputs) {
      ptx::store(y + n, static_cast<uint16_t>(words[n / 2] >> 16 * (n % 2)));
    }
  }
}

// Writes the tile of kTokens tokens to y, a chunk a thread. `token` and `output`: the tile's first.
// All kThreads threads.
template <int kChunks, int kTokens, int kThreads>
__device__ inline void write_tile(ptx::Shared tile, const Call& call, int64_t token,
                                  int64_t output) {
#pragma unroll
  for (int i = 0; i < kTokens * kChunks / kThreads; ++i) {
    const uint32_t at = threadIdx.x + i * kThreads, row = at / kChunks, chunk = at % kChunks;
    const int64_t first = output + chunk * kChunkNumbers;
    if (token + row >= call.tokens || first >= call.outputs) continue;
    write_chunk(call, token + row, first, ptx::load<uint4>(tile + swizzled<kChunks>(row, chunk)));
  }
}

}  // namespace sparsekern::cuda::tile
