// AVX512-BF16: dot products of pairs of bfloat16, summed in float32. Numbers too small to be normal
// count as zero.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/avx512.h"

namespace sparsekern::avx512_bf16 {

// A vector is 32 bfloat16, or 16 pairs of them; their products go to 16 float32.
struct Pairs16 {
  using Wide = avx512::Vec16;
  using Reg = __m512;
  using Pairs = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kLine = 32;  // bfloat16 of a cache line

  static SPARSEKERN_INLINE float widened(BFloat16 x) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(x.bits) << 16)));
  }
  static SPARSEKERN_INLINE Pairs load(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static SPARSEKERN_INLINE void store(void* p, Pairs v) { _mm512_storeu_si512(p, v); }
  static SPARSEKERN_INLINE void store_first(BFloat16* p, Pairs v, int n) {
    const __mmask32 first = n < 32 ? (1u << n) - 1u : ~0u;
    _mm512_mask_storeu_epi16(p, first, v);
  }
  static SPARSEKERN_INLINE Pairs splat(const uint32_t* p) {
    return _mm512_set1_epi32(static_cast<int>(*p));
  }
  static SPARSEKERN_INLINE Pairs splat(BFloat16 first, BFloat16 second) {
    return _mm512_set1_epi32(
        static_cast<int>(first.bits | static_cast<uint32_t>(second.bits) << 16));
  }
  // Two numbers that follow one another.
  static SPARSEKERN_INLINE Pairs splat_two(const BFloat16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  // Pair I of 16.
  template <int I>
  static SPARSEKERN_INLINE Pairs splat_of(Pairs pairs) {
    return _mm512_permutexvar_epi32(_mm512_set1_epi32(I), pairs);
  }
  static SPARSEKERN_INLINE Reg dot(Pairs a, Pairs b, Reg sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  // Rows of a panel hold the tokens in this order, so that two of them make pairs, of tokens 0 to
  // 15 and 16 to 31, without crossing a lane of 128 bits: 0-3 16-19 4-7 20-23 8-11 24-27 12-15
  // 28-31.
  static SPARSEKERN_INLINE Pairs pair_low(Pairs a, Pairs b) { return _mm512_unpacklo_epi16(a, b); }
  static SPARSEKERN_INLINE Pairs pair_high(Pairs a, Pairs b) { return _mm512_unpackhi_epi16(a, b); }
  static int place_of(int token) { return token % 16 / 4 * 8 + token / 16 * 4 + token % 4; }

  // The rows of two inputs, given the pairs that each token has of them.
  static SPARSEKERN_INLINE void rows_of_pairs(Pairs low, Pairs high, Pairs& even, Pairs& odd) {
    const __m512i apart =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    low = _mm512_shuffle_epi8(low, apart);
    high = _mm512_shuffle_epi8(high, apart);
    even = _mm512_unpacklo_epi64(low, high);
    odd = _mm512_unpackhi_epi64(low, high);
  }

  // The rows of two inputs, one after the other, given the pairs that each token has of them.
  static SPARSEKERN_INLINE Pairs one_by_one(Pairs pairs) {
    alignas(64) uint16_t from[32];
    for (int i = 0; i < 32; ++i) from[i] = (uint16_t)(i % 16 * 2 + i / 16);
    return _mm512_permutexvar_epi16(_mm512_load_si512(from), pairs);
  }

  // Pairs of the two outputs that each token has.
  static SPARSEKERN_INLINE Pairs round_pairs(Reg first, Reg second) {
    const __m512i side_by_side = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    const __m512i low = _mm512_setr_epi32(
        0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
        0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
    return _mm512_permutexvar_epi16(low, side_by_side);
  }

  // Row t: what rows 0 to 15 have in their place t, as pairs.
  static SPARSEKERN_INLINE void transpose(const Pairs row[16], Pairs out[16]) {
    Reg from[16], to[16];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) from[i] = _mm512_castsi512_ps(row[i]);
    Wide::transpose(from, to);
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) out[i] = _mm512_castps_si512(to[i]);
  }

  // Pairs of R weights of one input and as many of another.
  template <int R>
  static SPARSEKERN_INLINE void pair_weights(const BFloat16* a, const BFloat16* b,
                                             uint32_t* pairs) {
    static_assert(R == 4 || R == 8, "one or two vectors of 128 bits");
    __m128i* const to = reinterpret_cast<__m128i*>(pairs);
    if constexpr (R == 4) {
      const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(a));
      const __m128i second = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b));
      _mm_storeu_si128(to, _mm_unpacklo_epi16(first, second));
    } else {
      const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
      const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
      _mm_storeu_si128(to, _mm_unpacklo_epi16(first, second));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(first, second));
    }
  }

  // Where the pairs of `rows` weights of two inputs come from: of a vector that holds both, one
  // after the other, as often as they fit.
  static SPARSEKERN_INLINE Pairs pairing_of(int64_t rows) {
    alignas(64) uint16_t from[32];
    for (int64_t i = 0; i < 32; ++i) {
      from[i] = (uint16_t)(i / (2 * rows) * 2 * rows + i % 2 * rows + i % (2 * rows) / 2);
    }
    return _mm512_load_si512(from);
  }
  static SPARSEKERN_INLINE Pairs paired(Pairs weights, Pairs pairing) {
    return _mm512_permutexvar_epi16(pairing, weights);
  }
  static SPARSEKERN_INLINE Pairs load_first(const BFloat16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(n < 32 ? (1u << n) - 1u : ~0u, p);
  }
  // 16 weights of each of two inputs; of the second, all zero if it is null.
  static SPARSEKERN_INLINE Pairs load_two(const BFloat16* first, const BFloat16* second) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i high = second == nullptr
                             ? _mm256_setzero_si256()
                             : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static SPARSEKERN_INLINE void store_halves(uint32_t* low, uint32_t* high, Pairs v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm512_castsi512_si256(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm512_extracti64x4_epi64(v, 1));
  }
};

}  // namespace sparsekern::avx512_bf16
