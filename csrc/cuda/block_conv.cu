// Convolutions with block-sparse weights (tile/block_tile.h). An input of the matrix is a tap, a
// pixel of the convolution's kernel, and a channel: one distance in memory for all pixels, and a
// question for each of them, whether the tap falls on its image or on the zeros around it.
#include <cuda_runtime.h>

#include "cuda/conv_product.h"
#include "cuda/kernel.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/tile/block_tile.h"
#include "cuda/tile/swizzle.h"

namespace sparsekern::cuda {
namespace {

// The thread's part of the copies, a chunk of each slice, which lies within a tap.
class PixelCopy {
 public:
  __device__ PixelCopy(const ConvProduct& p, int64_t first_pixel) : p_(p) {
    const Images& images = p.images;
    const uint32_t line = threadIdx.x / 2, chunk = threadIdx.x % 2;
    const int64_t pixel = first_pixel + line;
    const int64_t pixels = int64_t{images.height.out} * images.width.out;
    const int64_t image = pixel / pixels;
    const int in_image = int(pixel - image * pixels);
    const int row = in_image / images.width.out, column = in_image - row * images.width.out;
    top_ = row * images.height.stride - images.height.padding;
    left_ = column * images.width.stride - images.width.padding;
    image_ = p.call.x + image * images.image;
    first_ = top_ * images.row + left_ * images.pixel + chunk * tile::kChunkNumbers;
    // Beyond the last pixel every tap falls beside the image.
    if (pixel >= p.call.tokens) top_ = kNowhere;
    to_ = tile::swizzled<2>(line, chunk);
  }

  // From the slice's first input on.
  __device__ void start(ptx::Shared slice, int input) const {
    const Images& images = p_.images;
    const uint32_t tap = images.channels.quotient(input);
    const uint32_t channel = input - tap * images.channels.divisor;
    const uint32_t tap_row = images.kernel_width.quotient(tap);
    const uint32_t tap_column = tap - tap_row * images.kernel_width.divisor;
    const uint32_t down = tap_row * images.height.dilation;
    const uint32_t right = tap_column * images.width.dilation;
    const bool inside = top_ + down < uint32_t(images.height.in) &&
                        left_ + right < uint32_t(images.width.in) && input < int(p_.call.inputs);
    // Modulo 2^32, which is right wherever the tap is inside.
    const uint32_t from = first_ + down * images.row + right * images.pixel + channel;
    const ptx::Global<const uint16_t> chunk = inside ? image_ + from : p_.call.x;
    ptx::cp_async_16(slice + to_, chunk.as<const uint4>(), inside);
  }

 private:
  static constexpr uint32_t kNowhere = 1u << 31;

  const ConvProduct& p_;
  ptx::Global<const uint16_t> image_;
  uint32_t top_, left_;  // of the first tap; beyond the image where they would be negative
  uint32_t first_, to_;
};

template <class Number, int kHeight>
__global__ void __launch_bounds__(block_tile::kThreads, 2)
    block_conv(const __grid_constant__ ConvProduct p) {
  block_tile::multiply<Number, PixelCopy, kHeight>(p);
}

// `argument`: a ConvProduct.
template <int kHeight>
cudaError_t run(const void* argument, Number number, cudaStream_t stream) {
  const auto& p = *static_cast<const ConvProduct*>(argument);
  const auto kernel = number == Number::kBFloat16 ? block_conv<ptx::BFloat16, kHeight>
                                                  : block_conv<ptx::Float16, kHeight>;
  return block_tile::launch<kHeight>(kernel, p, stream);
}

}  // namespace

cudaError_t block_conv_h128(const void* p, Number n, cudaStream_t s) { return run<128>(p, n, s); }
cudaError_t block_conv_h64(const void* p, Number n, cudaStream_t s) { return run<64>(p, n, s); }
cudaError_t block_conv_h32(const void* p, Number n, cudaStream_t s) { return run<32>(p, n, s); }
cudaError_t block_conv_h16(const void* p, Number n, cudaStream_t s) { return run<16>(p, n, s); }

}  // namespace sparsekern::cuda
