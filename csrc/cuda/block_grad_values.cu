// Gradients of the values of block-sparse weights, at the kept places alone: of a block, inputs^T x
// gradients over the tokens. A warp makes a tile of kSide inputs x kSide outputs with a pipeline of
// its own, and no two warps add to the same number.
#include <cuda_runtime.h>

#include "cuda/grad_product.h"
#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/mma.h"
#include "cuda/tile/epilogue.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/warp_pipeline.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;
using tile::swizzled;

constexpr int kWarps = 4, kThreads = kWarps * 32, kStages = 4, kStepTokens = 16;

template <int kSide>
struct Sizes {
  static constexpr int kChunks = kSide / tile::kChunkNumbers;
  static constexpr uint32_t kRowsBytes = kStepTokens * kSide * 2;  // of x, or of the gradient
  static constexpr uint32_t kStageBytes = 2 * kRowsBytes;
  static constexpr uint32_t kWarpBytes = kStages * kStageBytes;
  static_assert(kWarpBytes >= kSide * kSide * 2);  // the tile, when it is written
};

// Where a warp's tile lies.
struct Place {
  int64_t block, input, output;  // the tile's first input and output, in the weight
  int row, column;               // and in the block
};

__device__ inline Place place_of(const GradProduct& p, int64_t tile, int side) {
  const int across = p.weight.rows / side, tiles = p.weight.cols / side * across;
  Place place;
  place.block = tile / tiles;
  const int within = int(tile % tiles);
  place.row = within / across * side;
  place.column = within % across * side;
  // The last block row that begins at this block or before it; those without blocks are passed
  // over.
  int low = 0, high = p.weight.block_rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (ptx::load(p.weight.offsets + middle) <= place.block ? low : high) = middle;
  }
  place.input = int64_t{ptx::load(p.weight.columns + place.block)} * p.weight.cols + place.row;
  place.output = int64_t{low} * p.weight.rows + place.column;
  return place;
}

// kStepTokens rows of kSide numbers from `first` on; zeros beyond the matrix.
template <int kSide>
__device__ inline void load_rows(const GradProduct::Rows& rows, int64_t tokens, int64_t token,
                                 int64_t first, Shared to) {
  constexpr int kChunks = Sizes<kSide>::kChunks;
#pragma unroll
  for (int i = 0; i < kStepTokens * kChunks / 32; ++i) {
    const uint32_t at = threadIdx.x % 32 + 32 * i, row = at / kChunks, chunk = at % kChunks;
    const int64_t number = first + chunk * tile::kChunkNumbers;
    const bool inside = token + row < tokens && number < rows.numbers;
    const int64_t from = inside ? (token + row) * rows.stride + number : 0;
    ptx::cp_async_16(to + swizzled<kChunks>(row, chunk),
                     (rows.at + from).template as<const uint4>(), inside);
  }
}

template <class Number, int kSide>
__device__ inline void multiply(tile::Sums<kSide / 16, kSide / 8>& sums, Shared stage) {
  constexpr int kChunks = Sizes<kSide>::kChunks;
  uint32_t b[kSide / 16][4];
#pragma unroll
  for (int j = 0; j < kSide / 16; ++j) {
    ptx::ldmatrix_trans(b[j],
                        stage + (Sizes<kSide>::kRowsBytes + tile::lane_down<kChunks>(0, 16 * j)));
  }
#pragma unroll
  for (int i = 0; i < kSide / 16; ++i) {
    uint32_t a[4];
    ptx::ldmatrix_trans(a, stage + tile::lane_across<kChunks>(0, 16 * i));
#pragma unroll
    for (int j = 0; j < kSide / 8; ++j) {
      ptx::mma_m16n8k16<Number>(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// Through shared memory, so that lanes store 16 bytes of a row each.
template <class Number, int kSide>
__device__ inline void write(const GradProduct& p, const Place& place,
                             const tile::Sums<kSide / 16, kSide / 8>& sums, Shared staging) {
  constexpr int kChunks = Sizes<kSide>::kChunks;
  const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kSide / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kSide / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = &sums[i][j][2 * half];
        ptx::store(staging + (swizzled<kChunks>(16 * i + 8 * half + g, j) + 4 * q),
                   ptx::round_pair<Number>(pair[0], pair[1]));
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kSide * kChunks / 32; ++i) {
    const uint32_t at = threadIdx.x % 32 + 32 * i, row = at / kChunks, chunk = at % kChunks;
    const int64_t to = (place.block * p.weight.cols + place.row + row) * p.weight.rows +
                       place.column + chunk * tile::kChunkNumbers;
    ptx::store((p.grad_values + to).template as<uint4>(),
               ptx::load<uint4>(staging + swizzled<kChunks>(row, chunk)));
  }
}

template <class Number, int kSide>
__global__ void __launch_bounds__(kThreads) grad_values(const __grid_constant__ GradProduct p) {
  using Size = Sizes<kSide>;
  const int warp = int(threadIdx.x / 32);
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp;
  const int64_t tiles = int64_t{p.blocks} * (p.weight.rows / kSide) * (p.weight.cols / kSide);
  if (tile >= tiles) return;
  const Place place = place_of(p, tile, kSide);
  const Shared memory = ptx::shared_memory() + warp * Size::kWarpBytes;
  tile::Sums<kSide / 16, kSide / 8> sums = {};
  const int steps = int((p.tokens + kStepTokens - 1) / kStepTokens);
  tile::warp_pipeline<kStages>(
      0, 1, steps, memory, Size::kStageBytes,
      [&](int step, Shared stage) {
        const int64_t token = int64_t{step} * kStepTokens;
        load_rows<kSide>(p.x, p.tokens, token, place.input, stage);
        load_rows<kSide>(p.grad, p.tokens, token, place.output, stage + Size::kRowsBytes);
      },
      [&](Shared stage) { multiply<Number, kSide>(sums, stage); });
  __syncwarp();
  write<Number, kSide>(p, place, sums, memory);
}

// `argument`: a GradProduct.
template <int kSide>
cudaError_t run(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const GradProduct*>(argument);
  const auto kernel = number == Number::kBFloat16 ? grad_values<ptx::BFloat16, kSide>
                                                  : grad_values<ptx::Float16, kSide>;
  const int64_t tiles = int64_t{p.blocks} * (p.weight.rows / kSide) * (p.weight.cols / kSide);
  const uint32_t shared_bytes = kWarps * Sizes<kSide>::kWarpBytes;
  return launch(kernel, Grid{ceil_div(tiles, kWarps), 1}, kThreads, shared_bytes, p, stream);
}

}  // namespace

cudaError_t block_grad_values_h64(const void* p, Number n, cudaStream_t s) {
  return run<64>(p, n, s);
}
cudaError_t block_grad_values_h32(const void* p, Number n, cudaStream_t s) {
  return run<32>(p, n, s);
}
cudaError_t block_grad_values_h16(const void* p, Number n, cudaStream_t s) {
  return run<16>(p, n, s);
}

}  // namespace sparsekern::cuda
