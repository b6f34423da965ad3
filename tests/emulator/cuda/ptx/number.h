// Stands in for csrc/cuda/ptx/number.h: IEEE 754 binary16, and the upper half of binary32.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "cuda/ptx/number_tags.h"

namespace sparsekern::ptx {

inline float from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  const float size = exponent == 0x1F ? (fraction ? std::numeric_limits<float>::quiet_NaN()
                                                  : std::numeric_limits<float>::infinity())
                     : exponent == 0  ? std::ldexp(float(fraction), -24)
                                      : std::ldexp(float(fraction + 0x400), exponent - 25);
  return bits & 0x8000 ? -size : size;
}

// To the nearest, ties to even.
inline uint16_t to_float16(float number) {
  const uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  if (std::isnan(number)) return 0x7FFF;
  const float size = std::fabs(number);
  if (size == 0) return sign;
  if (size >= 65520.f) return sign | 0x7C00;
  int exponent;
  std::frexp(size, &exponent);  // size = 0.1... * 2^exponent
  const int unit = std::max(exponent - 11, -24);
  const auto units = int(std::nearbyint(std::ldexp(size, -unit)));
  // A carry into the exponent comes out right, as the fields lie side by side.
  return uint16_t(sign | (unit == -24 ? units : ((unit + 25) << 10) + (units - 0x400)));
}

inline uint16_t to_bfloat16(float number) {
  if (std::isnan(number)) return 0x7FFF;
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <class Number>
float widen(uint16_t bits) {
  if constexpr (Number::kIsBFloat16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float number;
    std::memcpy(&number, &wide, 4);
    return number;
  } else {
    return from_float16(bits);
  }
}

template <class Number>
uint32_t round_pair(float low, float high) {
  if constexpr (Number::kIsBFloat16) {
    return to_bfloat16(low) | uint32_t{to_bfloat16(high)} << 16;
  } else {
    return to_float16(low) | uint32_t{to_float16(high)} << 16;
  }
}

}  // namespace sparsekern::ptx
