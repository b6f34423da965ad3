// Vectors of 32 weights, of R outputs and as many inputs as fill them: dot products with a token's
// numbers for these inputs.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

namespace sparsekern::avx512_bf16 {

// What the vectors of all R have in common. A sum has kInputs / 2 parts, side by side.
template <int R>
struct Dots {
  using Reg = __m512;
  using Numbers = __m512i;
  static constexpr int kOutputs = R;
  static constexpr int kInputs = 32 / R;

  // [outputs][inputs], of weights [inputs][outputs].
  static SPARSEKERN_INLINE Numbers by_output(Numbers weights) {
    alignas(64) uint16_t from[32];
    for (int i = 0; i < 32; ++i) from[i] = (uint16_t)(i % kInputs * R + i / kInputs);
    return _mm512_permutexvar_epi16(_mm512_load_si512(from), weights);
  }
  // R weights of each input.
  static SPARSEKERN_INLINE Numbers weights(const BFloat16* const input[kInputs]) {
    __m128i part[4];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (R == 16) {
        part[i] = load(input[i / 2] + i % 2 * 8);
      } else if constexpr (R == 8) {
        part[i] = load(input[i]);
      } else {
        part[i] = _mm_unpacklo_epi64(load_half(input[2 * i]), load_half(input[2 * i + 1]));
      }
    }
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part[0]), part[1], 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(part[2]), part[3], 1);
    return by_output(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  // The same where they follow one another.
  static SPARSEKERN_INLINE Numbers weights(const BFloat16* p) {
    return by_output(_mm512_loadu_si512(p));
  }

  // A token's numbers, for all outputs.
  static SPARSEKERN_INLINE Numbers splat(const BFloat16* p) {
    if constexpr (R == 16) {
      int32_t two;
      __builtin_memcpy(&two, p, sizeof two);
      return _mm512_set1_epi32(two);
    } else if constexpr (R == 8) {
      int64_t four;
      __builtin_memcpy(&four, p, sizeof four);
      return _mm512_set1_epi64(four);
    } else {
      return _mm512_broadcast_i32x4(load(p));
    }
  }
  static SPARSEKERN_INLINE Reg dot(Numbers a, Numbers b, Reg sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // The sums of four tokens, their parts added up: R outputs of each, `stride` apart.
  static SPARSEKERN_INLINE void store_four(const Reg sums[4], float* to, int64_t stride) {
    if constexpr (R == 16) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < 4; ++t) _mm512_storeu_ps(to + t * stride, sums[t]);
    } else {
      const Reg two = add_neighbours(sums[0], sums[1]), others = add_neighbours(sums[2], sums[3]);
      if constexpr (R == 8) {
        _mm256_storeu_ps(to, _mm512_castps512_ps256(two));
        _mm256_storeu_ps(to + stride, upper_half(two));
        _mm256_storeu_ps(to + 2 * stride, _mm512_castps512_ps256(others));
        _mm256_storeu_ps(to + 3 * stride, upper_half(others));
      } else {
        const Reg four = add_neighbours(two, others);
        _mm_storeu_ps(to, _mm512_castps512_ps128(four));
        _mm_storeu_ps(to + stride, _mm512_extractf32x4_ps(four, 1));
        _mm_storeu_ps(to + 2 * stride, _mm512_extractf32x4_ps(four, 2));
        _mm_storeu_ps(to + 3 * stride, _mm512_extractf32x4_ps(four, 3));
      }
    }
  }
  // Up to 32 sums, rounded.
  static SPARSEKERN_INLINE void store_rounded(BFloat16* p, Reg low, Reg high, int n) {
    const __mmask32 first = n < 32 ? (1u << n) - 1u : ~0u;
    _mm512_mask_storeu_epi16(p, first, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }

  // [16 tokens][kInputs], of as many inputs of 16 tokens each; T of them are needed.
  template <int T>
  static SPARSEKERN_INLINE void by_token(const BFloat16* const input[kInputs], BFloat16* to) {
    Numbers pairs[kInputs / 2];
    SPARSEKERN_UNROLL
    for (int i = 0; i < kInputs / 2; ++i) pairs[i] = interleave(input[2 * i], input[2 * i + 1]);
    Numbers* const out = reinterpret_cast<Numbers*>(to);
    SPARSEKERN_UNROLL
    for (int i = 0; i * R < T; ++i) {  // R tokens fill a vector
      if constexpr (R == 16) {
        _mm512_store_si512(out + i, pairs[0]);
      } else if constexpr (R == 8) {
        _mm512_store_si512(out + i, fours(pairs[0], pairs[1], 8 * i));
      } else {
        const __m512i low = fours(pairs[0], pairs[1], i / 2 * 8);
        const __m512i high = fours(pairs[2], pairs[3], i / 2 * 8);
        _mm512_store_si512(out + i, eights(low, high, i % 2 * 4));
      }
    }
  }

 private:
  static SPARSEKERN_INLINE __m256 upper_half(Reg v) {
    return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(v), 1));
  }
  // Of two vectors, one after the other.
  static SPARSEKERN_INLINE Reg add_neighbours(Reg low, Reg high) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_ps(_mm512_permutex2var_ps(low, even, high),
                         _mm512_permutex2var_ps(low, odd, high));
  }
  static SPARSEKERN_INLINE __m128i load(const BFloat16* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static SPARSEKERN_INLINE __m128i load_half(const BFloat16* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }
  // Elements of two vectors side by side: 16, 32 and 64 bits of each token.
  static SPARSEKERN_INLINE Numbers interleave(const BFloat16* first, const BFloat16* second) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    const __m512i places = _mm512_setr_epi32(
        0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006, 0x270007, 0x280008,
        0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
    return _mm512_permutex2var_epi16(_mm512_castsi256_si512(low), places,
                                     _mm512_castsi256_si512(high));
  }
  static SPARSEKERN_INLINE Numbers fours(Numbers low, Numbers high, int first) {
    const __m512i places =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_epi32(low, _mm512_add_epi32(places, _mm512_set1_epi32(first)), high);
  }
  static SPARSEKERN_INLINE Numbers eights(Numbers low, Numbers high, int first) {
    const __m512i places = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    return _mm512_permutex2var_epi64(low, _mm512_add_epi64(places, _mm512_set1_epi64(first)), high);
  }
};

}  // namespace sparsekern::avx512_bf16
