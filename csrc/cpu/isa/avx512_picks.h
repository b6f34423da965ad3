// n:m with AVX-512: how a vector of 16 weights finds its inputs by one shuffle. A vector holds the
// weights that the rows g and g + 8 keep of whole groups (layouts/fragments.py), and its inputs are
// those of the groups that it meets, in the order of the values.
//
//   kMostTokens          up to which vectors of tokens take longer, as measured; 0: no picks
//   kTokens, kSums       at a time, at most
//   Places places(p)     the positions of a g, made ready
//   Index index<v>       where the lanes of its vector v pick
//   Inputs inputs<v>(x)  what they pick from, of a token
//
// Shuffles look at the lowest bits of an index alone, so nothing need be masked out above them.
#pragma once

#include "cpu/isa/avx512.h"

namespace sparsekern::avx512 {

template <int kN, int kM>
struct Picks16 {
  static constexpr int64_t kMostTokens = 0;
};

// [4 groups][pair][2] weights from four inputs each.
template <>
struct Picks16<2, 4> {
  static constexpr int64_t kMostTokens = 12;
  static constexpr int kTokens = 8, kSums = 16;
  using Places = __m512i;
  using Index = __m512i;
  using Inputs = __m512;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    const __m512i words = _mm512_castps_si512(Vec16::load_pair(reinterpret_cast<const float*>(p)));
    const __m512i halves = _mm512_castps_si512(
        _mm512_permutevar_ps(_mm512_castsi512_ps(words),
                             _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)));
    return _mm512_srlv_epi32(
        halves, _mm512_setr_epi32(0, 2, 16, 18, 0, 2, 16, 18, 4, 6, 20, 22, 4, 6, 20, 22));
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    return _mm512_srli_epi32(places, 8 * v);
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec16::load(x + 16 * v);
  }
  static SPARSEKERN_INLINE Vec16::Reg pick(Inputs inputs, Index index) {
    return _mm512_permutevar_ps(inputs, index);
  }
};

// [8 groups][pair] weights from 32 inputs.
template <>
struct Picks16<1, 4> {
  static constexpr int64_t kMostTokens = 12;
  static constexpr int kTokens = 4, kSums = 16;
  using Places = __m512i;
  using Index = __m512i;
  struct Inputs {
    __m512 low, high;
  };
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    // From byte 2 half + pair the bits of q.
    const __m512i fields = _mm512_srlv_epi32(
        _mm512_set1_epi32(word),
        _mm512_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30));
    return _mm512_or_si512(
        _mm512_and_si512(fields, _mm512_set1_epi32(3)),
        _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28));
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    return places;
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return {Vec16::load(x), Vec16::load(x + 16)};
  }
  static SPARSEKERN_INLINE Vec16::Reg pick(Inputs inputs, Index index) {
    return _mm512_permutex2var_ps(inputs.low, index, inputs.high);
  }
};

// [2 groups][pair][4] weights from 16 inputs.
template <>
struct Picks16<4, 8> {
  static constexpr int64_t kMostTokens = 20;
  static constexpr int kTokens = 8, kSums = 16;
  struct Places {
    __m512i low, high;  // of the vectors 0 and 1, and of 2 and 3
  };
  using Index = __m512i;
  using Inputs = __m512;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    // Words [half][pair][2]. The highest bit of a place is free to say which of the groups is
    // meant.
    const __m512i words = _mm512_castsi256_si512(
        _mm256_or_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                        _mm256_setr_epi32(0, 0, 0, 0, (int)0x88888888, (int)0x88888888,
                                          (int)0x88888888, (int)0x88888888)));
    const __m512i even = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    return {_mm512_srlv_epi32(_mm512_permutexvar_epi32(even, words), shifts),
            _mm512_srlv_epi32(_mm512_permutexvar_epi32(odd, words), shifts)};
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    return _mm512_srli_epi32(v < 2 ? places.low : places.high, 16 * (v % 2));
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec16::load(x + 16 * v);
  }
  static SPARSEKERN_INLINE Vec16::Reg pick(Inputs inputs, Index index) {
    return _mm512_permutexvar_ps(index, inputs);
  }
};

// [pair][8] weights from the 16 inputs of a group.
template <>
struct Picks16<8, 16> {
  static constexpr int64_t kMostTokens = 20;
  static constexpr int kTokens = 8, kSums = 16;
  struct Places {
    __m512i halves[2];  // a word for each q, of the rows g and g, and g + 8 and g + 8
  };
  using Index = __m512i;
  using Inputs = __m512;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    const __m512i words = _mm512_loadu_si512(p);
    return {{_mm512_shuffle_i32x4(words, words, 0x50), _mm512_shuffle_i32x4(words, words, 0xfa)}};
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    const __m512i shifts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512 half = _mm512_castsi512_ps(places.halves[v % 2]);
    const __m512i words = _mm512_castps_si512(_mm512_shuffle_ps(half, half, v / 2 * 0x55));
    return _mm512_srlv_epi32(words, shifts);
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec16::load(x + 16 * v);
  }
  static SPARSEKERN_INLINE Vec16::Reg pick(Inputs inputs, Index index) {
    return _mm512_permutexvar_ps(index, inputs);
  }
};

}  // namespace sparsekern::avx512
