// The conversion of 16-bit numbers. PTX ISA 9.7.9.21.
#pragma once

#include <stdint.h>

#include "cuda/ptx/number_tags.h"

namespace sparsekern::ptx {

// Two floats rounded to nearest, `low` in the lower half of the word.
template <class Number>
__device__ inline uint32_t round_pair(float low, float high) {
  uint32_t pair;
  if constexpr (Number::kIsBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <class Number>
__device__ inline float widen(uint16_t bits) {
  float wide;
  if constexpr (Number::kIsBFloat16) {
    wide = __uint_as_float(uint32_t{bits} << 16);
  } else {
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  }
  return wide;
}

}  // namespace sparsekern::ptx
