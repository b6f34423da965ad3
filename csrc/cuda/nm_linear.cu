// Products with 2:4 weights for many tokens: a block of threads makes 128 outputs x 128 tokens by
// mma.sp, 64 inputs a stage. The weights are copied to shared memory in the order in which lanes
// take them, so that a fragment is one load of 16 bytes.
#include <cuda_runtime.h>

#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/nm_product.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma_sp.h"
#include "cuda/tile/epilogue.h"
#include "cuda/tile/fragments.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;
using tile::swizzled;

constexpr int kThreads = 256;
constexpr int kOutputs = 128, kTokens = 128;
constexpr int kWarpOutputs = 64, kWarpTokens = 32;
constexpr int kOutputTiles = kWarpOutputs / 16, kTokenTiles = kWarpTokens / 8;
constexpr int kRowTiles = kOutputs / 16;
constexpr int kStages = 3, kGroupTiles = 2;  // tiles of 32 inputs in a stage
constexpr int kStageInputs = kGroupTiles * NMProduct::kTileInputs;
constexpr int kTokenChunks = kStageInputs / tile::kChunkNumbers;
constexpr uint32_t kTokensBytes = kTokens * kStageInputs * 2;
constexpr uint32_t kValuesBytes = kRowTiles * kGroupTiles * NMProduct::kValuesBytes;
constexpr uint32_t kPositionsBytes = kRowTiles * kGroupTiles * NMProduct::kPositionsBytes;
constexpr uint32_t kStageBytes = kTokensBytes + kValuesBytes + kPositionsBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;

template <class Number>
class Tile {
 public:
  __device__ Tile(const NMProduct& p, int64_t token, int row_tile)
      : p_(p), token_(token), row_tile_(row_tile) {}

  __device__ void run(Shared stages) {
    const int count = (p_.group_tiles + kGroupTiles - 1) / kGroupTiles;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load_stage(stages + i * kStageBytes, i);
    for (int i = 0, slot = 0; i < count; ++i, slot = (slot + 1) % kStages) {
      ptx::cp_async_wait<kStages - 2>();
      // The slot that is filled next was read before it, too.
      __syncthreads();
      load_stage(stages + (slot + kStages - 1) % kStages * kStageBytes, i + kStages - 1);
      multiply_stage(stages + slot * kStageBytes, i);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  __device__ void write(Shared staging) {
    const int64_t output = int64_t{row_tile_} * NMProduct::kTileOutputs;
    tile::finish<Number>(sums_, p_.call, output + warp_output());
    tile::stage<Number, kOutputs / 8>(sums_, staging, warp_token(), warp_output() / 8);
    __syncthreads();
    tile::write_tile<kOutputs / 8, kTokens, kThreads>(staging, p_.call, token_, output);
  }

 private:
  static __device__ uint32_t warp_output() {
    return threadIdx.x / 32 / (kTokens / kWarpTokens) * kWarpOutputs;
  }
  static __device__ uint32_t warp_token() {
    return threadIdx.x / 32 % (kTokens / kWarpTokens) * kWarpTokens;
  }

  __device__ void load_stage(Shared stage, int step) const {
    const int group_tile = step * kGroupTiles;
    if (group_tile < p_.group_tiles) {
      load_tokens(stage, int64_t{step} * kStageInputs);
      load_values(stage + kTokensBytes, group_tile);
      load_positions(stage + (kTokensBytes + kValuesBytes), group_tile);
    }
    ptx::cp_async_commit();
  }

  __device__ void load_tokens(Shared to, int64_t first_input) const {
#pragma unroll
    for (int i = 0; i < kTokens * kTokenChunks / kThreads; ++i) {
      const uint32_t at = threadIdx.x + i * kThreads;
      const uint32_t row = at / kTokenChunks, chunk = at % kTokenChunks;
      const int64_t token = token_ + row, input = first_input + chunk * tile::kChunkNumbers;
      const bool inside = token < p_.call.tokens && input < p_.call.inputs;
      const int64_t from = inside ? token * p_.call.x_stride + input : 0;
      ptx::cp_async_16(to + swizzled<kTokenChunks>(row, chunk),
                       (p_.call.x + from).template as<const uint4>(), inside);
    }
  }

  // Tiles beyond the weight are neither loaded nor multiplied.
  __device__ bool stored(int row_tile, int group_tile) const {
    return row_tile_ + row_tile < p_.row_tiles && group_tile < p_.group_tiles;
  }

  __device__ void load_values(Shared to, int group_tile) const {
    constexpr int kChunks = kGroupTiles * NMProduct::kValuesChunks;  // of a row tile
#pragma unroll
    for (int i = 0; i < kRowTiles * kChunks / kThreads; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      const int row_tile = at / kChunks, chunk = at % kChunks;
      const int group = group_tile + chunk / NMProduct::kValuesChunks;
      if (!stored(row_tile, group)) continue;
      ptx::cp_async_16(
          to + at * 16,
          p_.values_chunk(row_tile_ + row_tile, group, chunk % NMProduct::kValuesChunks), true);
    }
  }

  __device__ void load_positions(Shared to, int group_tile) const {
    constexpr int kChunks = kGroupTiles * NMProduct::kPositionsChunks;
    const int at = int(threadIdx.x), row_tile = at / kChunks, chunk = at % kChunks;
    const int group = group_tile + chunk / NMProduct::kPositionsChunks;
    if (row_tile >= kRowTiles || !stored(row_tile, group)) return;
    ptx::cp_async_16(
        to + at * 16,
        p_.positions_chunk(row_tile_ + row_tile, group, chunk % NMProduct::kPositionsChunks), true);
  }

  __device__ void multiply_stage(Shared stage, int step) {
    uint32_t metadata[kOutputTiles];
    const bool second = step * kGroupTiles + 1 < p_.group_tiles;
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      const int row_tile = int(warp_output()) / 16 + i;
      if (!stored(row_tile, 0)) continue;
      // One word serves both tiles: those of the first are in the lanes of selector 0.
      const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
      const uint32_t tile = second ? q / 2 : 0;
      metadata[i] = ptx::load<uint32_t>(
          stage +
          (kTokensBytes + kValuesBytes +
           (row_tile * kGroupTiles + tile) * NMProduct::kPositionsBytes + (2 * g + q % 2) * 4));
    }
    multiply_tile<0>(stage, metadata);
    if (second) multiply_tile<1>(stage, metadata);
  }

  template <int kGroupTile>
  __device__ void multiply_tile(Shared stage, const uint32_t (&metadata)[kOutputTiles]) {
    uint32_t b[kTokenTiles][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      tile::load_b_deep<kTokenChunks>(b[j], stage, warp_token() + 8 * j,
                                      kGroupTile * NMProduct::kTileInputs);
    }
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      const int row_tile = int(warp_output()) / 16 + i;
      if (!stored(row_tile, 0)) continue;
      const uint4 values = ptx::load<uint4>(
          stage + (kTokensBytes + (row_tile * kGroupTiles + kGroupTile) * NMProduct::kValuesBytes +
                   threadIdx.x % 32 * 16));
      const uint32_t a[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        ptx::mma_sp_m16n8k32<Number, kGroupTile>(sums_[i][j], a, b[j], metadata[i]);
      }
    }
  }

  const NMProduct& p_;
  const int64_t token_;
  const int row_tile_;
  tile::Sums<kOutputTiles, kTokenTiles> sums_ = {};
};

template <class Number>
__global__ void __launch_bounds__(kThreads, 2) nm_linear(const __grid_constant__ NMProduct p) {
  const Shared memory = ptx::shared_memory();
  Tile<Number> tile(p, int64_t{blockIdx.x} * kTokens, int(blockIdx.y) * kRowTiles);
  tile.run(memory);
  tile.write(memory);
}

}  // namespace

// `argument`: an NMProduct.
cudaError_t nm_2_4(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const NMProduct*>(argument);
  const auto kernel =
      number == Number::kBFloat16 ? nm_linear<ptx::BFloat16> : nm_linear<ptx::Float16>;
  const Grid grid{ceil_div(p.call.tokens, kTokens), ceil_div(p.row_tiles, kRowTiles)};
  return launch(kernel, grid, kThreads, kSharedBytes, p, stream);
}

}  // namespace sparsekern::cuda
