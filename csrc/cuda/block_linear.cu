// Products with block-sparse weights for many tokens, and with their transposes for gradients of
// inputs (tile/block_tile.h).
#include <cuda_runtime.h>

#include "cuda/block_product.h"
#include "cuda/kernel.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/tile/block_tile.h"
#include "cuda/tile/swizzle.h"

namespace sparsekern::cuda {
namespace {

// The thread's part of the copies, a chunk of each slice.
class TokenCopy {
 public:
  template <bool kTransposed>
  __device__ TokenCopy(const BlockProduct<kTransposed>& p, int64_t first_token)
      : inputs_(int(p.call.inputs)), input_(int(threadIdx.x) % 2 * tile::kChunkNumbers) {
    const Call& call = p.call;
    const uint32_t row = threadIdx.x / 2;
    const int64_t token = first_token + row;
    inside_ = token < call.tokens;
    from_ = call.x + (inside_ ? token * call.x_stride + input_ : 0);
    to_ = tile::swizzled<2>(row, threadIdx.x % 2);
  }

  // From the slice's first input on.
  __device__ void start(ptx::Shared slice, int input) const {
    const bool inside = inside_ && input + input_ < inputs_;
    ptx::cp_async_16(slice + to_, (from_ + (inside ? input : 0)).as<const uint4>(), inside);
  }

 private:
  const int inputs_, input_;
  bool inside_;
  ptx::Global<const uint16_t> from_;
  uint32_t to_;
};

template <class Number, int kHeight, bool kTransposed>
__global__ void __launch_bounds__(block_tile::kThreads, 2)
    block_linear(const __grid_constant__ BlockProduct<kTransposed> p) {
  block_tile::multiply<Number, TokenCopy, kHeight>(p);
}

// `argument`: a BlockProduct.
template <int kHeight, bool kTransposed>
cudaError_t run(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const BlockProduct<kTransposed>*>(argument);
  const auto kernel = number == Number::kBFloat16
                          ? block_linear<ptx::BFloat16, kHeight, kTransposed>
                          : block_linear<ptx::Float16, kHeight, kTransposed>;
  return block_tile::launch<kHeight>(kernel, p, stream);
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
