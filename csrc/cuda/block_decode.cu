// Products of few tokens with block-sparse weights, at the speed at which the weights come from
// memory: a thread block makes one strip of outputs, whose slices its 8 warps share. Each warp has
// a pipeline of its own with 3 slices under way: 24 KiB of weights a thread block, of which up to
// four fit an SM. Where there are fewer strips than that, several thread blocks share one.
#include <cuda_runtime.h>

#include "cuda/block_product.h"
#include "cuda/decode.inl.h"
#include "cuda/ptx/mma.h"
#include "cuda/tile/block_entries.h"
#include "cuda/tile/fragments.h"
#include "cuda/tile/reduce.h"
#include "cuda/tile/warp_pipeline.h"

namespace sparsekern::cuda {
namespace {

using ptx::Shared;
using Product = BlockProduct<false>;

constexpr int kWarps = kDecodeWarps, kThreads = kWarps * 32, kStages = kDecodeStages;

template <int kHeight, int kTokenTiles>
struct Sizes {
  static constexpr uint32_t kWeightsBytes = kHeight * 16 * 2;
  static constexpr uint32_t kStageBytes = kWeightsBytes + kTokenTiles * 8 * 16 * 2;
  static constexpr uint32_t kSharedBytes = kWarps * kStages * kStageBytes;
  static_assert(kSharedBytes >= tile::kReduceBytes<kWarps, kHeight / 16, kTokenTiles>);
};

// The slices of a strip, counted through all its blocks. Each lane copies a chunk or two.
template <int kHeight, int kTokenTiles>
class Slices {
 public:
  __device__ Slices(const Product& p, int strip, int64_t token)
      : p_(p), part_(strip % p.strips), token_(token) {
    const int group = strip / p.strips;
    first_ = tile::first(p, group);
    count_ = tile::count(p, group) * tile::slices(p);
  }

  __device__ int count() const { return count_; }

  __device__ void load(int slice, Shared stage) const {
    const int entry = first_ + slice / tile::slices(p_),
              within = slice % tile::slices(p_) * tile::kSliceInputs;
    load_weights(entry, within, stage);
    load_tokens(int64_t{tile::column(p_, entry)} * p_.weight.cols + within,
                stage + Sizes<kHeight, kTokenTiles>::kWeightsBytes);
  }

 private:
  __device__ void load_weights(int entry, int within, Shared to) const {
    constexpr int kChunks = kHeight / tile::kChunkNumbers;
#pragma unroll
    for (uint32_t at = threadIdx.x % 32; at < 16 * kChunks; at += 32) {
      const uint32_t row = at / kChunks, chunk = at % kChunks;
      const int64_t from = (int64_t{entry} * p_.weight.cols + within + row) * p_.weight.rows +
                           part_ * kHeight + chunk * tile::kChunkNumbers;
      ptx::cp_async_16(to + tile::swizzled<kChunks>(row, chunk),
                       (p_.weight.values + from).template as<const uint4>(), true);
    }
  }

  __device__ void load_tokens(int64_t first_input, Shared to) const {
    const uint32_t row = threadIdx.x % 32 / 2, chunk = threadIdx.x % 2;
    if (row >= kTokenTiles * 8) return;
    const int64_t token = token_ + row, input = first_input + chunk * tile::kChunkNumbers;
    const bool inside = token < p_.call.tokens && input < p_.call.inputs;
    const int64_t from = inside ? token * p_.call.x_stride + input : 0;
    ptx::cp_async_16(to + tile::swizzled<2>(row, chunk),
                     (p_.call.x + from).template as<const uint4>(), inside);
  }

  const Product& p_;
  const int part_;  // of the blocks' outputs
  const int64_t token_;
  int first_, count_;
};

template <class Number, int kHeight, int kTokenTiles>
__device__ inline void multiply(tile::Sums<kHeight / 16, kTokenTiles>& sums, Shared stage) {
  const Shared tokens = stage + Sizes<kHeight, kTokenTiles>::kWeightsBytes;
  uint32_t b[4];
  ptx::ldmatrix(
      b, tokens + (kTokenTiles == 2 ? tile::lane_across<2>(0, 0) : tile::lane_single<2>(0, 0)));
#pragma unroll
  for (int i = 0; i < kHeight / 16; ++i) {
    uint32_t a[4];
    ptx::ldmatrix_trans(a, stage + tile::lane_across<kHeight / 8>(0, 16 * i));
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      ptx::mma_m16n8k16<Number>(sums[i][j], a, b[2 * j], b[2 * j + 1]);
    }
  }
}

template <class Number, int kHeight, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 4) block_decode(const __grid_constant__ Product p) {
  using Size = Sizes<kHeight, kTokenTiles>;
  const Shared memory = ptx::shared_memory();
  const int warp = int(threadIdx.x / 32);
  const int64_t token = int64_t{blockIdx.y} * kTokenTiles * 8;
  const Slices<kHeight, kTokenTiles> slices(p, int(blockIdx.x), token);
  tile::Sums<kHeight / 16, kTokenTiles> sums = {};
  tile::warp_pipeline<kStages>(
      int(blockIdx.z) * kWarps + warp, p.call.split.count * kWarps, slices.count(),
      memory + warp * kStages * Size::kStageBytes, Size::kStageBytes,
      [&](int slice, Shared stage) { slices.load(slice, stage); },
      [&](Shared stage) { multiply<Number, kHeight, kTokenTiles>(sums, stage); });
  __syncthreads();
  tile::reduce_and_write<Number, kWarps>(sums, memory, p.call, int64_t{blockIdx.x} * kHeight,
                                         token);
}

template <int kHeight, int kTokenTiles>
cudaError_t run_tiles(const Product& p, Number number, cudaStream_t stream) {
  const auto kernel = number == Number::kBFloat16
                          ? block_decode<ptx::BFloat16, kHeight, kTokenTiles>
                          : block_decode<ptx::Float16, kHeight, kTokenTiles>;
  return launch_decode<kTokenTiles * 8>(kernel, int64_t{p.groups} * p.strips,
                                        Sizes<kHeight, kTokenTiles>::kSharedBytes, p, number,
                                        stream);
}

// `argument`: a BlockProduct<false>.
template <int kHeight>
cudaError_t run(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const Product*>(argument);
  return p.call.tokens <= 8 ? run_tiles<kHeight, 1>(p, number, stream)
                            : run_tiles<kHeight, 2>(p, number, stream);
}

}  // namespace

cudaError_t block_decode_h32(const void* p, Number n, cudaStream_t s) { return run<32>(p, n, s); }
cudaError_t block_decode_h16(const void* p, Number n, cudaStream_t s) { return run<16>(p, n, s); }

}  // namespace sparsekern::cuda
