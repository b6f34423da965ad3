// y = x W^T by mma.sp, where W is the packed image of NM(2, 4) as it lies in memory. It is read as
// docs/formats.md describes it. One warp makes a tile of 16 outputs and 8 tokens; nothing here is
// meant to be fast.
#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/ptx/mma_sp.h"

// Not in the namespace without a name: what the exported functions take must have linkage.
struct Product {
  const uint4* values;        // [row tiles, group tiles, 32]: the eight weights of a lane
  const uint32_t* positions;  // [row tiles, group tiles, 8, 2]
  const uint16_t* x;          // [tokens, inputs], the bits of either dtype
  float* y;                   // [tokens, outputs]
  int outputs, inputs, tokens;
};

namespace {

constexpr int kLanes = 32, kTileOutputs = 16, kTileInputs = 32, kTileTokens = 8;
constexpr int kTilePositions = 8 * 2;  // words

__device__ uint32_t input_or_zero(const Product& p, int token, int input) {
  return token < p.tokens && input < p.inputs ? p.x[token * p.inputs + input] : 0;
}

template <bool kBfloat16, int kSelector>
__device__ void multiply(const Product& p, int group_tile, const uint4& values, uint32_t metadata,
                         float (&d)[4]) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const uint32_t a[4] = {values.x, values.y, values.z, values.w};
  uint32_t b[4];
  for (int r = 0; r < 4; ++r) {
    const int token = blockIdx.y * kTileTokens + g;
    const int input = group_tile * kTileInputs + 8 * r + 2 * q;
    b[r] = input_or_zero(p, token, input) | input_or_zero(p, token, input + 1) << 16;
  }
  if constexpr (kBfloat16) {
    sparsekern::ptx::mma_sp_m16n8k32_bf16<kSelector>(d, a, b, metadata);
  } else {
    sparsekern::ptx::mma_sp_m16n8k32_f16<kSelector>(d, a, b, metadata);
  }
}

template <bool kBfloat16>
__global__ void linear(Product p) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const int group_tiles = (p.inputs + kTileInputs - 1) / kTileInputs;
  const uint4* values = p.values + blockIdx.x * group_tiles * kLanes + threadIdx.x;
  const uint32_t* positions = p.positions + blockIdx.x * group_tiles * kTilePositions;
  float d[4] = {};
  for (int tile = 0; tile < group_tiles; tile += 2) {
    // The lanes of selector 0 bring the positions of this tile, those of selector 1 the next one's.
    const bool last = tile + 1 == group_tiles;
    const int positions_tile = last ? tile : tile + q / 2;
    const uint32_t metadata = positions[positions_tile * kTilePositions + 2 * g + q % 2];
    multiply<kBfloat16, 0>(p, tile, values[tile * kLanes], metadata, d);
    if (!last) multiply<kBfloat16, 1>(p, tile + 1, values[(tile + 1) * kLanes], metadata, d);
  }
  for (int i = 0; i < 4; ++i) {
    const int output = blockIdx.x * kTileOutputs + g + 8 * (i / 2);
    const int token = blockIdx.y * kTileTokens + 2 * q + i % 2;
    if (output < p.outputs && token < p.tokens) p.y[token * p.outputs + output] = d[i];
  }
}

const char* run(void (*kernel)(Product), const Product& p) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((p.outputs + kTileOutputs - 1) / kTileOutputs,
                        (p.tokens + kTileTokens - 1) / kTileTokens);
  config.blockDim = dim3(kLanes);
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, p);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  return cudaGetErrorName(error);
}

}  // namespace

extern "C" {

const char* linear_bfloat16(const Product* p) { return run(linear<true>, *p); }

const char* linear_float16(const Product* p) { return run(linear<false>, *p); }

}  // extern "C"
