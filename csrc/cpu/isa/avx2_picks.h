// n:m with AVX2: how a vector of 8 weights finds its inputs. As in avx512_picks.h, by one shuffle
// or two.
#pragma once

#include "cpu/isa/avx2.h"

namespace sparsekern::avx2 {

template <int kN, int kM>
struct Picks8 {
  static constexpr int64_t kMostTokens = 0;
};

// [2 groups][pair][2] weights from four inputs each.
template <>
struct Picks8<2, 4> {
  static constexpr int64_t kMostTokens = 12;
  static constexpr int kTokens = 4, kSums = 8;
  using Places = __m256i;
  using Index = __m256i;
  using Inputs = __m256;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    const __m256i words = _mm256_castps_si256(Vec8::load_pair(reinterpret_cast<const float*>(p)));
    const __m256i halves = _mm256_castps_si256(_mm256_permutevar_ps(
        _mm256_castsi256_ps(words), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)));
    return _mm256_srlv_epi32(halves, _mm256_setr_epi32(0, 2, 16, 18, 0, 2, 16, 18));
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    return _mm256_srli_epi32(places, 4 * v);
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec8::load(x + 8 * v);
  }
  static SPARSEKERN_INLINE Vec8::Reg pick(Inputs inputs, Index index) {
    return _mm256_permutevar_ps(inputs, index);
  }
};

// [q][half][pair] weights of four groups, from four inputs each.
template <>
struct Picks8<1, 4> {
  static constexpr int64_t kMostTokens = 8;
  static constexpr int kTokens = 4, kSums = 8;
  using Places = __m256i;
  using Index = __m256i;
  struct Inputs {
    __m256 halves[2];
  };
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word),
                             _mm256_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26));
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    return _mm256_srli_epi32(places, 4 * v);
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    const __m256 even = Vec8::load(x + 16 * v), odd = Vec8::load(x + 16 * v + 8);
    return {{_mm256_permute2f128_ps(even, odd, 0x20), _mm256_permute2f128_ps(even, odd, 0x31)}};
  }
  static SPARSEKERN_INLINE Vec8::Reg pick(Inputs inputs, Index index) {
    return _mm256_blend_ps(_mm256_permutevar_ps(inputs.halves[0], index),
                           _mm256_permutevar_ps(inputs.halves[1], index), 0xcc);
  }
};

// [pair][4] weights from the eight inputs of a group.
template <>
struct Picks8<4, 8> {
  static constexpr int64_t kMostTokens = 16;
  static constexpr int kTokens = 4, kSums = 8;
  using Places = __m256i;  // words [half][pair][2]
  using Index = __m256i;
  using Inputs = __m256;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    constexpr int q = v / 2, half = v % 2, low = half * 4 + q / 2, shift = q % 2 * 16;
    const __m256i words = _mm256_permutevar8x32_epi32(
        places, _mm256_setr_epi32(low, low, low, low, low + 2, low + 2, low + 2, low + 2));
    return _mm256_srlv_epi32(words, _mm256_setr_epi32(shift, shift + 4, shift + 8, shift + 12,
                                                      shift, shift + 4, shift + 8, shift + 12));
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec8::load(x + 8 * v);
  }
  static SPARSEKERN_INLINE Vec8::Reg pick(Inputs inputs, Index index) {
    return _mm256_permutevar8x32_ps(inputs, index);
  }
};

// 8 weights of one row from the 16 inputs of a group.
template <>
struct Picks8<8, 16> {
  static constexpr int64_t kMostTokens = 8;
  static constexpr int kTokens = 4, kSums = 8;
  using Places = const uint8_t*;  // words [half][pair][q]
  using Index = __m256i;
  struct Inputs {
    __m256 low, high;
  };
  static SPARSEKERN_INLINE Places places(const uint8_t* p) { return p; }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    constexpr int q = v / 4, half_and_pair = v % 4;
    int32_t word;
    __builtin_memcpy(&word, places + (half_and_pair * 4 + q) * 4, sizeof word);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word),
                             _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return {Vec8::load(x + v / 2 * 16), Vec8::load(x + v / 2 * 16 + 8)};
  }
  static SPARSEKERN_INLINE Vec8::Reg pick(Inputs inputs, Index index) {
    const __m256 in_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(inputs.low, index),
                            _mm256_permutevar8x32_ps(inputs.high, index), in_high);
  }
};

}  // namespace sparsekern::avx2
