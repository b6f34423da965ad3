// Products of few tokens with block-sparse weights, at the speed at which the weights come from
// memory: a thread block makes one strip of outputs, whose slices its 8 warps share. Each warp has
// a pipeline of its own with 3 slices under way: 24 KiB of weights a thread block, of which up to
// four fit an SM. Where there are fewer strips than that, several thread blocks share one.
#include <cuda_runtime.h>

#include "cuda/block_product.h"
#include "cuda/decode.inl.h"
#include "cuda/ptx/keep.h"
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

// The slices of a strip, counted through all its blocks, that a warp takes: from `first` on each
// stride-th. Each lane copies a chunk or two. What a step needs to know it has from the last one: a
// division for each of them would take longer to issue than weights take to come.
template <int kHeight, int kTokenTiles>
class Slices {
 public:
  __device__ Slices(const Product& p, int strip, int64_t token, int first, int stride)
      : p_(p), of_block_(tile::slices(p)), stride_(stride) {
    entry_stride_ = int(ptx::keep(uint32_t(stride / of_block_)));
    slice_stride_ = int(ptx::keep(uint32_t(stride % of_block_)));
    const int group = strip / p.strips, begin = tile::first(p, group);
    end_ = begin + tile::count(p, group);
    count_ = (end_ - begin) * of_block_;
    entry_ = begin + first / of_block_;
    slice_ = first % of_block_;
    column_ = column_at(entry_);
    const int64_t row =
        (int64_t{begin} * of_block_ + first) * tile::kSliceInputs + lane() / kChunks;
    weights_ = p.weight.values + (row * p.weight.rows + strip % p.strips * kHeight +
                                  lane() % kChunks * tile::kChunkNumbers);
    const int64_t of_lane = token + lane() / 2;
    const int chunk = lane() % 2 * tile::kChunkNumbers;
    inputs_ = of_lane < p.call.tokens ? int(p.call.inputs) - chunk : 0;
    tokens_ = p.call.x + (inputs_ > 0 ? of_lane * p.call.x_stride + chunk : 0);
  }

  __device__ int count() const { return count_; }

  // The next of them.
  __device__ void load(Shared stage) {
    load_weights(stage);
    load_tokens(stage + Sizes<kHeight, kTokenTiles>::kWeightsBytes);
    weights_ = weights_ + int64_t{stride_} * tile::kSliceInputs * p_.weight.rows;
    entry_ += entry_stride_;
    slice_ += slice_stride_;
    if (slice_ >= of_block_) {
      slice_ -= of_block_;
      ++entry_;
    }
    column_ = column_at(entry_);
  }

 private:
  static constexpr int kChunks = kHeight / tile::kChunkNumbers;  // of a row of weights
  static __device__ int lane() { return int(threadIdx.x) % 32; }

  __device__ int column_at(int entry) const { return entry < end_ ? tile::column(p_, entry) : 0; }

  __device__ void load_weights(Shared to) const {
    constexpr int kRows = 32 / kChunks;
#pragma unroll
    for (int row = 0; row < tile::kSliceInputs; row += kRows) {
      ptx::cp_async_16(to + tile::swizzled<kChunks>(row + lane() / kChunks, lane() % kChunks),
                       (weights_ + int64_t{row} * p_.weight.rows).template as<const uint4>(), true);
    }
  }

  __device__ void load_tokens(Shared to) const {
    if (lane() / 2 >= kTokenTiles * 8) return;
    const int input = column_ * p_.weight.cols + slice_ * tile::kSliceInputs;
    const bool inside = input < inputs_;
    ptx::cp_async_16(to + tile::swizzled<2>(lane() / 2, lane() % 2),
                     (tokens_ + (inside ? input : 0)).template as<const uint4>(), inside);
  }

  const Product& p_;
  const int of_block_, stride_;
  int entry_stride_, slice_stride_;  // the stride, in blocks and what is left
  int end_, count_;
  int entry_, slice_, column_;  // of the next one, whose column is loaded a step ahead
  ptx::Global<const uint16_t> weights_, tokens_;
  int inputs_;  // from tokens_ on; none of a token that there is not
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
  const int first = int(blockIdx.z) * kWarps + warp, stride = p.call.split.count * kWarps;
  Slices<kHeight, kTokenTiles> slices(p, int(blockIdx.x), token, first, stride);
  tile::Sums<kHeight / 16, kTokenTiles> sums = {};
  tile::warp_pipeline<kStages>(
      first, stride, slices.count(), memory + warp * kStages * Size::kStageBytes, Size::kStageBytes,
      [&](int, Shared stage) { slices.load(stage); },
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
