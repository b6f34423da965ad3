// Products of few tokens with 2:4 weights, at the speed at which the weights come from memory: a
// thread block makes two row tiles of outputs, whose group tiles its warps share. Each warp has a
// pipeline of its own. Where row tiles are few, several thread blocks share two.
#include <cuda_runtime.h>

#include "cuda/decode.inl.h"
#include "cuda/nm_product.h"
#include "cuda/ptx/mma_sp.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/reduce.h"
#include "cuda/tile/warp_pipeline.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;

constexpr int kWarps = kDecodeWarps, kThreads = kWarps * 32, kStages = kDecodeStages;
constexpr int kRowTiles = kDecodeRowTiles;
constexpr int kTokenChunks = NMProduct::kTileInputs / tile::kChunkNumbers;
constexpr uint32_t kValuesBytes = kRowTiles * NMProduct::kValuesBytes;
constexpr uint32_t kPositionsBytes = kRowTiles * NMProduct::kPositionsBytes;

template <int kTokenTiles>
struct Sizes {
  static constexpr int kTokens = kTokenTiles * 8;
  static constexpr uint32_t kStageBytes =
      kValuesBytes + kPositionsBytes + kTokens * NMProduct::kTileInputs * 2;
  static constexpr uint32_t kSharedBytes = kWarps * kStages * kStageBytes;
  static_assert(kSharedBytes >= tile::kReduceBytes<kWarps, kRowTiles, kTokenTiles>);
};

// The second row tile may lie beyond the weight: it is neither loaded nor multiplied.
__device__ inline bool stored(const NMProduct& p, int row_tile) { return row_tile < p.row_tiles; }

template <int kTokenTiles>
__device__ inline void load(const NMProduct& p, int row_tile, int64_t token, int group_tile,
                            Shared stage) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    if (!stored(p, row_tile + i)) continue;
    ptx::cp_async_16(stage + (i * NMProduct::kValuesBytes + lane * 16),
                     p.values_chunk(row_tile + i, group_tile, lane), true);
  }
  constexpr int kPositionsChunks = NMProduct::kPositionsChunks;
  const int of_row_tile = lane / kPositionsChunks;
  if (of_row_tile < kRowTiles && stored(p, row_tile + of_row_tile)) {
    ptx::cp_async_16(stage + (kValuesBytes + lane * 16),
                     p.positions_chunk(row_tile + of_row_tile, group_tile, lane % kPositionsChunks),
                     true);
  }
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int row = 8 * i + lane / kTokenChunks, chunk = lane % kTokenChunks;
    const int64_t input =
        int64_t{group_tile} * NMProduct::kTileInputs + chunk * tile::kChunkNumbers;
    const bool inside = token + row < p.call.tokens && input < p.call.inputs;
    const int64_t from = inside ? (token + row) * p.call.x_stride + input : 0;
    ptx::cp_async_16(
        stage + (kValuesBytes + kPositionsBytes + tile::swizzled<kTokenChunks>(row, chunk)),
        (p.call.x + from).template as<const uint4>(), inside);
  }
}

template <class Number, int kTokenTiles>
__device__ inline void multiply(const NMProduct& p, int row_tile,
                                tile::Sums<kRowTiles, kTokenTiles>& sums, Shared stage) {
  uint32_t b[kTokenTiles][4];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    ptx::ldmatrix(
        b[j], stage + (kValuesBytes + kPositionsBytes + tile::lane_deep<kTokenChunks>(8 * j, 0)));
  }
  const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    if (!stored(p, row_tile + i)) continue;
    const uint4 values =
        ptx::load<uint4>(stage + (i * NMProduct::kValuesBytes + threadIdx.x % 32 * 16));
    const uint32_t a[4] = {values.x, values.y, values.z, values.w};
    const uint32_t metadata = ptx::load<uint32_t>(
        stage + (kValuesBytes + i * NMProduct::kPositionsBytes + (2 * g + q % 2) * 4));
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      ptx::mma_sp_m16n8k32<Number, 0>(sums[i][j], a, b[j], metadata);
    }
  }
}

template <class Number, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 3) nm_decode(const __grid_constant__ NMProduct p) {
  using Size = Sizes<kTokenTiles>;
  const Shared memory = ptx::shared_memory();
  const int warp = int(threadIdx.x / 32), row_tile = int(blockIdx.x) * kRowTiles;
  const int64_t token = int64_t{blockIdx.y} * Size::kTokens;
  tile::Sums<kRowTiles, kTokenTiles> sums = {};
  tile::warp_pipeline<kStages>(
      int(blockIdx.z) * kWarps + warp, p.call.split.count * kWarps, p.group_tiles,
      memory + warp * kStages * Size::kStageBytes, Size::kStageBytes,
      [&](int tile, Shared stage) { load<kTokenTiles>(p, row_tile, token, tile, stage); },
      [&](Shared stage) { multiply<Number, kTokenTiles>(p, row_tile, sums, stage); });
  __syncthreads();
  tile::reduce_and_write<Number, kWarps>(sums, memory, p.call, int64_t{row_tile} * 16, token);
}

template <int kTokenTiles>
cudaError_t run(const NMProduct& p, Number number, cudaStream_t stream) {
  const auto kernel = number == Number::kBFloat16 ? nm_decode<ptx::BFloat16, kTokenTiles>
                                                  : nm_decode<ptx::Float16, kTokenTiles>;
  return launch_decode<kTokenTiles * 8>(kernel, ceil_div(p.row_tiles, kRowTiles),
                                        Sizes<kTokenTiles>::kSharedBytes, p, number, stream);
}

}  // namespace

// `argument`: an NMProduct.
cudaError_t nm_2_4_decode(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const NMProduct*>(argument);
  return p.call.tokens <= 8 ? run<1>(p, number, stream) : run<2>(p, number, stream);
}

}  // namespace sparsekern::cuda
