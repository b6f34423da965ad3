// The product that a convolution is: the packed matrix [outputs, kernel height x width x channels]
// (sparsekern/layouts/conv.py) with the pixels of channels-last images in the place of tokens.
#pragma once

#include <stdint.h>

#include "cuda/block_product.h"

namespace sparsekern::cuda {

// Divides numbers below 2^31 by the same number: for l with 2^l >= divisor, the multiplier is 2^(31
// + l) / divisor, rounded up (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t divisor, multiplier, shift;

  explicit Divisor(uint32_t divisor) : divisor(divisor), shift(31) {
    while ((uint64_t{1} << (shift - 31)) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((uint64_t{1} << shift) / divisor + 1);
  }

  __device__ uint32_t quotient(uint32_t number) const {
    return static_cast<uint32_t>(uint64_t{number} * multiplier >> shift);
  }
};

// One of the two sides of images: sizes of input and output, and how the kernel moves along it.
// With its padding the input has fewer than 2^30 pixels, and so has what the kernel spans.
struct ImageSide {
  int in, out, stride, padding, dilation;
};

// The images: numbers from one image, row and pixel to the next are multiples of 8, and a number
// lies fewer than 2^31 behind its image's first one. Channels, a multiple of 16, lie side by side.
struct Images {
  int64_t image;
  int row, pixel;
  ImageSide height, width;
  Divisor channels, kernel_width;
};

// `call`: x the first pixel of all, tokens and y the pixels of the output, inputs those of the
// matrix.
struct ConvProduct : BlockProduct<false> {
  Images images;
};

}  // namespace sparsekern::cuda
