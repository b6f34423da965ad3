// Products with 2:4 weights for many tokens: a block of threads makes 128 outputs x 128 tokens by
// mma.sp, 64 inputs a stage. The weights are copied to shared memory in the order in which lanes
// take them, so that a fragment is one load of 16 bytes.
#include <cuda_runtime.h>

#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/nm_product.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/keep.h"
#include "cuda/ptx/mma_sp.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/output_tile.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;
using tile::swizzled;

using tile::OutputTile;

constexpr int kThreads = OutputTile::kThreads;
constexpr int kOutputs = OutputTile::kOutputs, kTokens = OutputTile::kTokens;
constexpr int kOutputTiles = OutputTile::kOutputTiles, kTokenTiles = OutputTile::kTokenTiles;
constexpr int kRowTiles = kOutputs / 16;
constexpr int kStages = 3, kGroupTiles = 2;  // tiles of 32 inputs in a stage
constexpr int kStageInputs = kGroupTiles * NMProduct::kTileInputs;
constexpr int kTokenChunks = kStageInputs / tile::kChunkNumbers;
constexpr uint32_t kTokensBytes = kTokens * kStageInputs * 2;
constexpr uint32_t kValuesBytes = kRowTiles * kGroupTiles * NMProduct::kValuesBytes;
constexpr uint32_t kPositionsBytes = kRowTiles * kGroupTiles * NMProduct::kPositionsBytes;
constexpr uint32_t kStageBytes = kTokensBytes + kValuesBytes + kPositionsBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes >= OutputTile::kStagingBytes);

// The thread's part of the copies: chunks of the tokens 32 apart, and chunks of the weights' tiles.
class Copies {
 public:
  __device__ Copies(const NMProduct& p, int64_t first_token, int first_row_tile)
      : p_(p), input_(int(threadIdx.x) % kTokenChunks * tile::kChunkNumbers) {
    const uint32_t row = threadIdx.x / kTokenChunks;
    const int64_t token = first_token + row;
    tokens_ = p.call.x + (token * p.call.x_stride + input_);
    const int64_t left = p.call.tokens - token;
    tokens_inside_ = left < kTokens ? int(left) : kTokens;
    tokens_to_ = swizzled<kTokenChunks>(row, threadIdx.x % kTokenChunks);
    constexpr int kChunks = kGroupTiles * NMProduct::kValuesChunks;  // of a row tile
    row_tile_ = first_row_tile + int(threadIdx.x) / kChunks;
    values_ = p.values_chunk(row_tile_, 0, int(threadIdx.x) % kChunks);
    constexpr int kPositionsChunks = kGroupTiles * NMProduct::kPositionsChunks;
    const int of_row_tile = int(threadIdx.x) / kPositionsChunks;
    copies_positions_ = of_row_tile < kRowTiles && first_row_tile + of_row_tile < p.row_tiles;
    positions_ = p.positions_chunk(copies_positions_ ? first_row_tile + of_row_tile : 0, 0,
                                   int(threadIdx.x) % kPositionsChunks);
  }

  // Those of the next step, of which there may be none.
  __device__ void start(Shared stage) {
    if (group_tile_ < p_.group_tiles) {
      start_tokens(stage);
      start_weights(stage + kTokensBytes);
      input_ += kStageInputs;
      tokens_ = tokens_ + kStageInputs;
      values_ = values_ + kGroupTiles * NMProduct::kValuesChunks;
      positions_ = positions_ + kGroupTiles * NMProduct::kPositionsChunks;
      group_tile_ += kGroupTiles;
    }
    ptx::cp_async_commit();
  }

 private:
  __device__ void start_tokens(Shared to) const {
    constexpr int kRows = kThreads / kTokenChunks;  // at once
#pragma unroll
    for (int i = 0; i < kTokens / kRows; ++i) {
      const bool inside = i * kRows < tokens_inside_ && input_ < p_.call.inputs;
      const auto from = inside ? tokens_ + i * kRows * p_.call.x_stride : p_.call.x;
      ptx::cp_async_16(to + (tokens_to_ + i * kRows * kStageInputs * 2),
                       from.template as<const uint4>(), inside);
    }
  }

  // Tiles beyond the weight are neither loaded nor multiplied.
  __device__ void start_weights(Shared to) const {
    constexpr int kRowTilesAtOnce = kThreads / (kGroupTiles * NMProduct::kValuesChunks);
    const int lane_tile = int(threadIdx.x) / NMProduct::kValuesChunks % kGroupTiles;
#pragma unroll
    for (int i = 0; i < kRowTiles / kRowTilesAtOnce; ++i) {
      if (row_tile_ + i * kRowTilesAtOnce >= p_.row_tiles) continue;
      if (group_tile_ + lane_tile >= p_.group_tiles) continue;
      const int64_t later = int64_t{i * kRowTilesAtOnce} * p_.group_tiles;
      ptx::cp_async_16(to + (threadIdx.x * 16 + i * kThreads * 16),
                       values_ + later * NMProduct::kValuesChunks, true);
    }
    const int positions_tile = int(threadIdx.x) / NMProduct::kPositionsChunks % kGroupTiles;
    if (copies_positions_ && group_tile_ + positions_tile < p_.group_tiles) {
      ptx::cp_async_16(to + (kValuesBytes + threadIdx.x * 16), positions_, true);
    }
  }

  const NMProduct& p_;
  int input_, group_tile_ = 0, row_tile_, tokens_inside_;
  bool copies_positions_;
  uint32_t tokens_to_;
  ptx::Global<const uint16_t> tokens_;
  ptx::Global<const uint4> values_, positions_;
};

template <class Number>
class Tile {
 public:
  __device__ Tile(const NMProduct& p, Shared stages, int64_t token, int row_tile)
      : p_(p),
        stages_(stages),
        token_(token),
        row_tile_(row_tile),
        copies_(p, token, row_tile),
        b_lane_(ptx::keep(tile::lane_deep<kTokenChunks>(OutputTile::warp_token(), 0))),
        values_lane_(ptx::keep(kTokensBytes +
                               warp_row_tile() * kGroupTiles * NMProduct::kValuesBytes +
                               threadIdx.x % 32 * 16)) {}

  __device__ void run() {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) copies_.start(stages_ + i * kStageBytes);
    Shared used = stages_, filled = last_stage();
    for (int group_tile = 0; group_tile < p_.group_tiles; group_tile += kGroupTiles) {
      ptx::cp_async_wait<kStages - 2>();
      // The stage that is filled next was read before it, too.
      __syncthreads();
      copies_.start(filled);
      multiply_stage(used, group_tile + 1 < p_.group_tiles);
      filled = used;
      used = used.at == last_stage().at ? stages_ : used + kStageBytes;
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  __device__ void write() {
    OutputTile::write<Number>(sums_, stages_, p_.call, int64_t{row_tile_} * NMProduct::kTileOutputs,
                              token_);
  }

 private:
  static __device__ uint32_t warp_row_tile() {
    return OutputTile::warp_output() / NMProduct::kTileOutputs;
  }
  __device__ Shared last_stage() const { return stages_ + (kStages - 1) * kStageBytes; }
  __device__ bool stored(int i) const {
    return row_tile_ + int(warp_row_tile()) + i < p_.row_tiles;
  }

  // `second`: whether the weight has the stage's second tile of inputs.
  __device__ void multiply_stage(Shared stage, bool second) {
    uint32_t metadata[kOutputTiles];
    const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    // One word serves both tiles: those of the first are in the lanes of selector 0.
    const uint32_t tile = second ? q / 2 : 0;
    const Shared positions =
        stage +
        (kTokensBytes + kValuesBytes +
         (warp_row_tile() * kGroupTiles + tile) * NMProduct::kPositionsBytes + (2 * g + q % 2) * 4);
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      if (!stored(i)) continue;
      metadata[i] = ptx::load<uint32_t>(positions + i * kGroupTiles * NMProduct::kPositionsBytes);
    }
    multiply_tile<0>(stage, metadata);
    if (second) multiply_tile<1>(stage, metadata);
  }

  template <int kGroupTile>
  __device__ void multiply_tile(Shared stage, const uint32_t (&metadata)[kOutputTiles]) {
    // The second tile's chunks differ from the first one's in one bit of their numbers.
    constexpr uint32_t kTileBytes = NMProduct::kTileInputs * 2;
    uint32_t b[kTokenTiles][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const uint32_t lane = b_lane_ ^ (kGroupTile * kTileBytes);
      ptx::ldmatrix(b[j], stage + (lane + 8 * j * kStageInputs * 2));
    }
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      if (!stored(i)) continue;
      const uint4 values = ptx::load<uint4>(
          stage + (values_lane_ + (i * kGroupTiles + kGroupTile) * NMProduct::kValuesBytes));
      const uint32_t a[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        ptx::mma_sp_m16n8k32<Number, kGroupTile>(sums_[i][j], a, b[j], metadata[i]);
      }
    }
  }

  const NMProduct& p_;
  const Shared stages_;
  const int64_t token_;
  const int row_tile_;
  Copies copies_;
  const uint32_t b_lane_, values_lane_;
  OutputTile::WarpSums sums_ = {};
};

template <class Number>
__global__ void __launch_bounds__(kThreads, 2) nm_linear(const __grid_constant__ NMProduct p) {
  const Shared memory = ptx::shared_memory();
  Tile<Number> tile(p, memory, int64_t{blockIdx.x} * kTokens, int(blockIdx.y) * kRowTiles);
  tile.run();
  tile.write();
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
