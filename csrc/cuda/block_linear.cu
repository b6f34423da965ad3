// Products with block-sparse weights for many tokens, and with their transposes for gradients of
// inputs: a block of threads makes 128 outputs x 128 tokens.
//
// Weights are operand A of mma, so 16 outputs share a fragment of 8 tokens; a warp holds 64 outputs
// x 32 tokens, for which it loads 24 KiB of operands from shared memory for 64 Ki multiply-adds.
// Blocks lower than 128 outputs share the activations: the thread block walks the union of their
// columns, and warps leave out the strips that have no block there.
#include <cuda_runtime.h>

#include "cuda/block_product.h"
#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma.h"
#include "cuda/tile/block_walk.h"
#include "cuda/tile/epilogue.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/heaviest.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;
using tile::swizzled;

constexpr int kThreads = 256;
constexpr int kOutputs = 128, kTokens = 128;
constexpr int kWarpOutputs = 64, kWarpTokens = 32;
constexpr int kStages = 4, kSlices = 2;  // slices of 16 inputs in a stage
constexpr uint32_t kTokensBytes = kTokens * 16 * 2, kWeightsBytes = kOutputs * 16 * 2;
constexpr uint32_t kSliceBytes = kTokensBytes + kWeightsBytes;
constexpr uint32_t kStageBytes = kSlices * kSliceBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes >= tile::kHeaviestBytes);

// How a strip of kHeight outputs lies in shared memory, 16 inputs of it: as in the block, by inputs
// if the product is with the weight, by outputs if it is with the transpose.
template <int kHeight, bool kTransposed>
struct Strip {
  static constexpr int kChunks = (kTransposed ? 16 : kHeight) / tile::kChunkNumbers;
  static constexpr uint32_t kBytes = kHeight * 16 * 2;

  // 16 outputs from `output` on.
  static __device__ void load(uint32_t (&a)[4], Shared strip, uint32_t output) {
    if constexpr (kTransposed) {
      tile::load_a<kChunks>(a, strip, output, 0);
    } else {
      tile::load_a_trans<kChunks>(a, strip, 0, output);
    }
  }
};

template <class Number, int kHeight, bool kTransposed>
class Tile {
 public:
  using Product = BlockProduct<kTransposed>;
  using Weights = Strip<kHeight, kTransposed>;
  static constexpr int kStrips = kOutputs / kHeight;

  __device__ Tile(const Product& p, int64_t token, int first_strip)
      : p_(p), token_(token), first_strip_(first_strip), walk_(p, first_strip) {}

  __device__ void run(Shared stages) {
    uint64_t masks = 0;  // of the slices under way, the oldest lowest
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) masks |= load_stage(stages, i) << i * kMaskBits;
    for (int slot = 0; (masks & kStageMask) != 0; slot = (slot + 1) % kStages) {
      ptx::cp_async_wait<kStages - 2>();
      // The slot that is filled next was read before it, too.
      __syncthreads();
      const uint64_t ahead = load_stage(stages, (slot + kStages - 1) % kStages);
      multiply_stage(stages + slot * kStageBytes, uint32_t(masks & kStageMask));
      masks = masks >> kMaskBits | ahead << (kStages - 2) * kMaskBits;
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  __device__ void write(Shared staging) {
    const int64_t output = int64_t{first_strip_} * kHeight;
    tile::finish<Number>(sums_, p_.call, output + warp_output());
    tile::stage<Number, kOutputs / 8>(sums_, staging, warp_token(), warp_output() / 8);
    __syncthreads();
    tile::write_tile<kOutputs / 8, kTokens, kThreads>(staging, p_.call, token_, output);
  }

 private:
  static constexpr int kMaskBits = kSlices * kStrips;
  static constexpr uint64_t kStageMask = (1u << kMaskBits) - 1;
  static constexpr int kOutputTiles = kWarpOutputs / 16, kTokenTiles = kWarpTokens / 8;

  static __device__ uint32_t warp_output() {
    return threadIdx.x / 32 / (kTokens / kWarpTokens) * kWarpOutputs;
  }
  static __device__ uint32_t warp_token() {
    return threadIdx.x / 32 % (kTokens / kWarpTokens) * kWarpTokens;
  }

  // A chunk of tokens and a chunk of weights each thread, of each slice.
  __device__ uint64_t load_stage(Shared stages, int slot) {
    uint64_t masks = 0;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      if (walk_.done()) break;
      const Shared slice = stages + (slot * kStageBytes + s * kSliceBytes);
      load_tokens(slice);
      load_weights(slice + kTokensBytes);
      masks |= uint64_t{walk_.mask()} << s * kStrips;
      walk_.step();
    }
    ptx::cp_async_commit();
    return masks;
  }

  __device__ void load_tokens(Shared to) const {
    const uint32_t row = threadIdx.x / 2, chunk = threadIdx.x % 2;
    const int64_t token = token_ + row, input = walk_.input() + chunk * tile::kChunkNumbers;
    const bool inside = token < p_.call.tokens && input < p_.call.inputs;
    const int64_t from = inside ? token * p_.call.x_stride + input : 0;
    ptx::cp_async_16(to + swizzled<2>(row, chunk), (p_.call.x + from).template as<const uint4>(),
                     inside);
  }

  __device__ void load_weights(Shared to) const {
    constexpr uint32_t kThreadsOfStrip = kThreads / kStrips;
    const int strip = int(threadIdx.x / kThreadsOfStrip);
    const int64_t block = walk_.block(strip);
    if ((walk_.mask() >> strip & 1) == 0) return;
    const uint32_t at = threadIdx.x % kThreadsOfStrip;
    const uint32_t row = at / Weights::kChunks, chunk = at % Weights::kChunks;
    const int part = (first_strip_ + strip) % p_.strips;  // of the block's outputs
    // Of [cols, rows], the first row and number of the slice.
    const int64_t slice = walk_.slice() * tile::kSliceInputs;
    const int64_t first_row = kTransposed ? part * kHeight : slice;
    const int64_t first = kTransposed ? slice : part * kHeight;
    const int64_t from = (block * p_.weight.cols + first_row + row) * p_.weight.rows + first +
                         chunk * tile::kChunkNumbers;
    ptx::cp_async_16(to + (strip * Weights::kBytes + swizzled<Weights::kChunks>(row, chunk)),
                     (p_.weight.values + from).template as<const uint4>(), true);
  }

  __device__ void multiply_stage(Shared stage, uint32_t masks) {
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const uint32_t mask = masks >> s * kStrips & ((1u << kStrips) - 1);
      const uint32_t first = warp_output() / kHeight;
      constexpr uint32_t kStripsOfWarp = kHeight >= kWarpOutputs ? 1 : kWarpOutputs / kHeight;
      if ((mask >> first & ((1u << kStripsOfWarp) - 1)) == 0) continue;
      multiply_slice(stage + s * kSliceBytes, mask);
    }
  }

  __device__ void multiply_slice(Shared tokens, uint32_t mask) {
    const Shared weights = tokens + kTokensBytes;
    uint32_t b[kTokenTiles / 2][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles / 2; ++j) {
      tile::load_b_pair<2>(b[j], tokens, warp_token() + 16 * j, 0);
    }
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      const uint32_t output = warp_output() + 16 * i, strip = output / kHeight;
      if (kHeight < kWarpOutputs && (mask >> strip & 1) == 0) continue;
      uint32_t a[4];
      Weights::load(a, weights + strip * Weights::kBytes, output % kHeight);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        ptx::mma_m16n8k16<Number>(sums_[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  const Product& p_;
  const int64_t token_;
  const int first_strip_;
  tile::BlockWalk<Product, kStrips> walk_;
  tile::Sums<kOutputTiles, kTokenTiles> sums_ = {};
};

template <class Number, int kHeight, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 2)
    block_linear(const __grid_constant__ BlockProduct<kTransposed> p) {
  constexpr int kStrips = kOutputs / kHeight;
  const Shared memory = ptx::shared_memory();
  const int row = tile::heaviest<kThreads, kStrips>(p, int(blockIdx.y), memory);
  Tile<Number, kHeight, kTransposed> tile(p, int64_t{blockIdx.x} * kTokens, row * kStrips);
  tile.run(memory);
  tile.write(memory);
}

// `argument`: a BlockProduct.
template <int kHeight, bool kTransposed>
cudaError_t run(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const BlockProduct<kTransposed>*>(argument);
  const auto kernel = number == Number::kBFloat16
                          ? block_linear<ptx::BFloat16, kHeight, kTransposed>
                          : block_linear<ptx::Float16, kHeight, kTransposed>;
  const Grid grid{ceil_div(p.call.tokens, kTokens),
                  ceil_div(int64_t{p.groups} * p.strips * kHeight, kOutputs)};
  return launch(kernel, grid, kThreads, kSharedBytes, p, stream);
}

}  // namespace

cudaError_t block_h128(const void* p, Number n, cudaStream_t s) { return run<128, false>(p, n, s); }
cudaError_t block_h64(const void* p, Number n, cudaStream_t s) { return run<64, false>(p, n, s); }
cudaError_t block_h32(const void* p, Number n, cudaStream_t s) { return run<32, false>(p, n, s); }
cudaError_t block_h16(const void* p, Number n, cudaStream_t s) { return run<16, false>(p, n, s); }

cudaError_t block_grad_input_h128(const void* p, Number n, cudaStream_t s) {
  return run<128, true>(p, n, s);
}
cudaError_t block_grad_input_h64(const void* p, Number n, cudaStream_t s) {
  return run<64, true>(p, n, s);
}
cudaError_t block_grad_input_h32(const void* p, Number n, cudaStream_t s) {
  return run<32, true>(p, n, s);
}
cudaError_t block_grad_input_h16(const void* p, Number n, cudaStream_t s) {
  return run<16, true>(p, n, s);
}

}  // namespace sparsekern::cuda
