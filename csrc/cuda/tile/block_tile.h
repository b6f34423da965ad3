// The kernel of many tokens for block-sparse weights: a block of threads makes 128 outputs x 128
// tokens, which are rows of activations, or whatever else `Activations` fetches.
//
// Weights are operand A of mma, so 16 outputs share a fragment of 8 tokens; a warp holds 64 outputs
// x 32 tokens, for which it loads 24 KiB of operands from shared memory for 64 Ki multiply-adds.
// Blocks lower than 128 outputs share the activations: the thread block walks the union of their
// columns, and warps leave out the strips that have no block there.
#pragma once

#include <stdint.h>

#include "cuda/block_product.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/keep.h"
#include "cuda/ptx/mma.h"
#include "cuda/tile/block_walk.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/heaviest.h"
#include "cuda/tile/output_tile.h"

namespace sparsekern::cuda::block_tile {

using ptx::Shared;
using tile::OutputTile;
using tile::swizzled;

constexpr int kThreads = OutputTile::kThreads;
constexpr int kOutputs = OutputTile::kOutputs, kTokens = OutputTile::kTokens;
constexpr int kOutputTiles = OutputTile::kOutputTiles, kTokenTiles = OutputTile::kTokenTiles;
constexpr int kStages = 4, kSlices = 2;  // slices of 16 inputs in a stage
constexpr uint32_t kTokensBytes = kTokens * 16 * 2, kWeightsBytes = kOutputs * 16 * 2;
constexpr uint32_t kSliceBytes = kTokensBytes + kWeightsBytes;
constexpr uint32_t kStageBytes = kSlices * kSliceBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes >= tile::kHeaviestBytes && kSharedBytes >= OutputTile::kStagingBytes);

// How a strip of kHeight outputs lies in shared memory, 16 inputs of it: as in the block, by inputs
// if the product is with the weight, by outputs if it is with the transpose.
template <int kHeight, bool kTransposed>
struct Strip {
  static constexpr int kChunks = (kTransposed ? 16 : kHeight) / tile::kChunkNumbers;
  static constexpr uint32_t kBytes = kHeight * 16 * 2;

  // Where the lane finds the fragment of 16 outputs from `output` on, counted through all strips.
  static __device__ uint32_t lane(uint32_t output) {
    const uint32_t strip = output / kHeight, row = output % kHeight;
    const uint32_t within =
        kTransposed ? tile::lane_down<kChunks>(row, 0) : tile::lane_across<kChunks>(0, row);
    return strip * kBytes + within;
  }

  // The same 16 x i outputs later: of an address, for i of a warp.
  static __device__ Shared later(Shared lane, int i) {
    const uint32_t bytes = 16 * i / kHeight * kBytes;
    if constexpr (kTransposed) return lane + 16 * i * (16 * 2);
    return {(lane.at ^ (16 * i % kHeight * 2)) + bytes};
  }

  static __device__ void load(uint32_t (&a)[4], Shared lane) {
    if constexpr (kTransposed) {
      ptx::ldmatrix(a, lane);
    } else {
      ptx::ldmatrix_trans(a, lane);
    }
  }
};

template <int kHeight, bool kTransposed>
class WeightCopy {
 public:
  using Weights = Strip<kHeight, kTransposed>;
  static constexpr int kStrips = kOutputs / kHeight;

  __device__ WeightCopy(const BlockProduct<kTransposed>& p, int first_strip)
      : strip_(int(threadIdx.x) / (kThreads / kStrips)),
        block_numbers_(p.weight.rows * p.weight.cols),
        slice_numbers_(tile::kSliceInputs * (kTransposed ? 1 : p.weight.rows)) {
    const uint32_t at = threadIdx.x % (kThreads / kStrips);
    const uint32_t row = at / Weights::kChunks, chunk = at % Weights::kChunks;
    // A block is [cols, rows]; its outputs of the product are one of them, in several strips.
    const int output = (first_strip + strip_) % p.strips * kHeight;
    const int64_t first = kTransposed ? int64_t{output} * p.weight.rows : output;
    from_ = p.weight.values + (first + int64_t{row} * p.weight.rows + chunk * tile::kChunkNumbers);
    to_ = strip_ * Weights::kBytes + swizzled<Weights::kChunks>(row, chunk);
  }

  // Of which strip.
  __device__ int strip() const { return strip_; }

  __device__ void start(Shared slice, int block, int of_block) const {
    const int64_t from = int64_t{block} * block_numbers_ + of_block * slice_numbers_;
    ptx::cp_async_16(slice + (kTokensBytes + to_), (from_ + from).template as<const uint4>(), true);
  }

 private:
  const int strip_, block_numbers_, slice_numbers_;
  ptx::Global<const uint16_t> from_;
  uint32_t to_;
};

// Activations: fetches the thread's part of a slice of them, like TokenCopy of block_linear.cu.
template <class Number, class Product, class Activations, int kHeight>
class Tile {
 public:
  using Weights = Strip<kHeight, Product::kIsTransposed>;
  static constexpr int kStrips = kOutputs / kHeight;

  __device__ Tile(const Product& p, Shared stages, int64_t token, int first_strip)
      : p_(p),
        stages_(stages),
        token_(token),
        first_strip_(first_strip),
        walk_(p, first_strip),
        tokens_(p, token),
        weights_(p, first_strip),
        b_lane_(ptx::keep(tile::lane_across<2>(OutputTile::warp_token(), 0))),
        a_lane_(ptx::keep(kTokensBytes + Weights::lane(OutputTile::warp_output()))) {}

  __device__ void run() {
    Masks masks = 0;  // of the slices under way, the oldest lowest
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      masks |= Masks{load_stage(stages_ + i * kStageBytes)} << i * kMaskBits;
    }
    Shared used = stages_, filled = stages_ + (kStages - 1) * kStageBytes;
    while ((masks & kStageMask) != 0) {
      ptx::cp_async_wait<kStages - 2>();
      // The stage that is filled next was read before it, too.
      __syncthreads();
      const uint32_t ahead = load_stage(filled);
      multiply_stage(used, uint32_t(masks & kStageMask));
      masks = masks >> kMaskBits | Masks{ahead} << (kStages - 2) * kMaskBits;
      filled = used;
      used = used.at == last_stage().at ? stages_ : used + kStageBytes;
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  __device__ void write() {
    OutputTile::write<Number>(sums_, stages_, p_.call, int64_t{first_strip_} * kHeight, token_);
  }

 private:
  static constexpr int kMaskBits = kSlices * kStrips;
  using Masks = typename tile::Word<(kMaskBits * kStages > 32)>::type;
  static constexpr uint32_t kStageMask = (1u << kMaskBits) - 1;

  __device__ Shared last_stage() const { return stages_ + (kStages - 1) * kStageBytes; }

  // Starts the copies of the next slices, and returns which strips have them.
  __device__ uint32_t load_stage(Shared stage) {
    uint32_t masks = 0;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      if (walk_.done()) break;
      const Shared slice = stage + s * kSliceBytes;
      tokens_.start(slice, walk_.input());
      const int block = walk_.block(weights_.strip());
      if (kStrips == 1 || (walk_.mask() >> weights_.strip() & 1) != 0) {
        weights_.start(slice, block, walk_.slice());
      }
      masks |= walk_.mask() << s * kStrips;
      walk_.step();
    }
    ptx::cp_async_commit();
    return masks;
  }

  __device__ void multiply_stage(Shared stage, uint32_t masks) {
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      constexpr uint32_t kStripsOfWarp =
          kHeight >= OutputTile::kWarpOutputs ? 1 : OutputTile::kWarpOutputs / kHeight;
      const uint32_t own = masks >> (s * kStrips + OutputTile::warp_output() / kHeight);
      if ((own & ((1u << kStripsOfWarp) - 1)) == 0) continue;
      multiply_slice(stage + s * kSliceBytes, own);
    }
  }

  // Bit i of `own`: whether the warp's strip i has the slice.
  __device__ void multiply_slice(Shared slice, uint32_t own) {
    uint32_t b[kTokenTiles / 2][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles / 2; ++j) {
      ptx::ldmatrix(b[j], slice + (b_lane_ + 16 * j * (16 * 2)));
    }
    const Shared weights = slice + a_lane_;
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      if (kHeight < OutputTile::kWarpOutputs && (own >> (16 * i / kHeight) & 1) == 0) continue;
      uint32_t a[4];
      Weights::load(a, Weights::later(weights, i));
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        ptx::mma_m16n8k16<Number>(sums_[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  const Product& p_;
  const Shared stages_;
  const int64_t token_;
  const int first_strip_;
  tile::BlockWalk<Product, kStrips> walk_;
  const Activations tokens_;
  const WeightCopy<kHeight, Product::kIsTransposed> weights_;
  const uint32_t b_lane_, a_lane_;
  OutputTile::WarpSums sums_ = {};
};

// What the kernel does.
template <class Number, class Activations, int kHeight, class Product>
__device__ inline void multiply(const Product& p) {
  constexpr int kStrips = kOutputs / kHeight;
  const Shared memory = ptx::shared_memory();
  const int row = tile::heaviest<kThreads, kStrips>(p, int(blockIdx.y), memory);
  Tile<Number, Product, Activations, kHeight> tile(p, memory, int64_t{blockIdx.x} * kTokens,
                                                   row * kStrips);
  tile.run();
  tile.write();
}

// A kernel that does it, and has kThreads threads.
template <int kHeight, class Product>
cudaError_t launch(void (*kernel)(Product), const Product& p, cudaStream_t stream) {
  const Grid grid{ceil_div(p.call.tokens, kTokens),
                  ceil_div(int64_t{p.groups} * p.strips * kHeight, kOutputs)};
  return cuda::launch(kernel, grid, kThreads, kSharedBytes, p, stream);
}

}  // namespace sparsekern::cuda::block_tile
