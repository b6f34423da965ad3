// The end of products of few tokens whose strips several thread blocks share. It is a kernel of its
// own: the last thread block to come could do the same without a second launch, but needs counters
// that somebody has set to zero before, which is a launch too.
#include <cuda_runtime.h>

#include "cuda/decode.h"
#include "cuda/launch.inl.h"
#include "cuda/tile/epilogue.h"

namespace sparsekern::cuda {
namespace {

constexpr int kThreads = 64;  // few, as numbers are few and all SMs are to load some

// Two neighbouring lanes make a chunk of outputs of a token, half of it each, so that what a warp
// loads lies together.
template <class Number>
__global__ void __launch_bounds__(kThreads) add_partials(const __grid_constant__ Call call) {
  constexpr int kHalf = tile::kChunkNumbers / 2;
  const int64_t halves = (call.outputs + tile::kChunkNumbers - 1) / tile::kChunkNumbers * 2;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t token = at / halves, output = at % halves * kHalf;
  const bool inside = token < call.tokens;
  float sums[kHalf] = {};
#pragma unroll 4  // whose loads are all under way together
  for (int part = 0; part < (inside ? call.split.count : 0); ++part) {
    const ptx::Global<float> from = call.split.at(part, call.tokens, token, output);
    const float4 numbers = ptx::load(from.template as<const float4>());
    sums[0] += numbers.x;
    sums[1] += numbers.y;
    sums[2] += numbers.z;
    sums[3] += numbers.w;
  }
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    sums[i] = tile::activated(sums[i] + tile::bias_of<Number>(call, output + i), call.activation);
  }
  const uint32_t low = ptx::round_pair<Number>(sums[0], sums[1]);
  const uint32_t high = ptx::round_pair<Number>(sums[2], sums[3]);
  const int neighbour = int(threadIdx.x % 32 ^ 1);
  const uint32_t next_low = __shfl_sync(~0u, low, neighbour);
  const uint32_t next_high = __shfl_sync(~0u, high, neighbour);
  if (inside && threadIdx.x % 2 == 0) {
    tile::write_chunk(call, token, output, {low, high, next_low, next_high});
  }
}

}  // namespace

cudaError_t launch_add_partials(const Call& call, Number number, cudaStream_t stream) {
  const auto kernel =
      number == Number::kBFloat16 ? add_partials<ptx::BFloat16> : add_partials<ptx::Float16>;
  const int64_t halves = call.tokens * ceil_div(call.outputs, tile::kChunkNumbers) * 2;
  return launch(kernel, Grid{ceil_div(halves, kThreads), 1}, kThreads, 0, call, stream);
}

}  // namespace sparsekern::cuda
