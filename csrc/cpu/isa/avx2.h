// AVX2 + FMA: vectors of 8 (and 4) floats, 16 registers.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

namespace sparsekern::avx2 {

template <int kN, int kM>
struct Picks8;

static SPARSEKERN_INLINE __m128 widened_four(const BFloat16* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

struct Vec8 {
  using Reg = __m256;
  static constexpr int kLanes = 8;

  static SPARSEKERN_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static SPARSEKERN_INLINE Reg set(float x) { return _mm256_set1_ps(x); }
  static SPARSEKERN_INLINE Reg splat(const float* p) { return _mm256_broadcast_ss(p); }
  // Two or four floats, to be splat one by one by a shuffle, which takes no part of what loads and
  // multiply-adds need.
  static SPARSEKERN_INLINE Reg load_pair(const float* p) {
    return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
  }
  static SPARSEKERN_INLINE Reg load_quad(const float* p) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
  template <int I>
  static SPARSEKERN_INLINE Reg splat_of(Reg few) {
    return _mm256_permute_ps(few, I * 0x55);
  }
  static SPARSEKERN_INLINE Reg load_quad(const BFloat16* p) {
    const __m128 four = widened_four(p);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(four), four, 1);
  }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static SPARSEKERN_INLINE void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static SPARSEKERN_INLINE __m256i first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  }
  static SPARSEKERN_INLINE Reg load_first(const float* p, int n) {
    return _mm256_maskload_ps(p, first(n));
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg v, int n) {
    _mm256_maskstore_ps(p, first(n), v);
  }
  // The first n numbers of every second one; it reads 2 n - 1.
  static SPARSEKERN_INLINE Reg load_even(const float* p, int n) {
    const __m256 mixed =
        _mm256_shuffle_ps(load_first(p, 2 * n - 1), load_first(p + 8, 2 * n - 9), 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
  }
  static SPARSEKERN_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  // NaN in the second argument is passed on by both.
  static SPARSEKERN_INLINE Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static SPARSEKERN_INLINE Reg round(Reg a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // 2^n for integral n in [-126, 127].
  static SPARSEKERN_INLINE Reg exp2i(Reg n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

  // How vectors of weights find their inputs (avx2_picks.h).
  template <int kN, int kM>
  using Picks = Picks8<kN, kM>;

  // Lane i of the result is the sum of the lanes of in[i].
  static SPARSEKERN_INLINE Reg sum_lanes(const Reg in[8]) {
    Reg half[4], quarter[2];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      half[i] = _mm256_add_ps(_mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]),
                              _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]));
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < 2; ++i) {
      quarter[i] = _mm256_add_ps(_mm256_shuffle_ps(half[2 * i], half[2 * i + 1], 0x44),
                                 _mm256_shuffle_ps(half[2 * i], half[2 * i + 1], 0xee));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(quarter[0], quarter[1], 0x20),
                         _mm256_permute2f128_ps(quarter[0], quarter[1], 0x31));
  }

  // out[j] lane i = src[row[i] * stride + j] for 8 rows; rows beyond `rows` repeat the last one.
  static SPARSEKERN_INLINE void load_transposed(const float* src, int64_t stride, int rows,
                                                Reg out[8]) {
    SPARSEKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      Reg quad[4];
      SPARSEKERN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* low = src + (i < rows ? i : rows - 1) * stride + 4 * half;
        const float* high = src + (i + 4 < rows ? i + 4 : rows - 1) * stride + 4 * half;
        quad[i] =
            _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
      }
      const Reg a = _mm256_unpacklo_ps(quad[0], quad[1]), b = _mm256_unpackhi_ps(quad[0], quad[1]);
      const Reg c = _mm256_unpacklo_ps(quad[2], quad[3]), d = _mm256_unpackhi_ps(quad[2], quad[3]);
      out[4 * half + 0] = _mm256_shuffle_ps(a, c, 0x44);
      out[4 * half + 1] = _mm256_shuffle_ps(a, c, 0xee);
      out[4 * half + 2] = _mm256_shuffle_ps(b, d, 0x44);
      out[4 * half + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
  }
};

struct Vec4 {
  using Reg = __m128;
  static constexpr int kLanes = 4;

  static SPARSEKERN_INLINE Reg zero() { return _mm_setzero_ps(); }
  static SPARSEKERN_INLINE Reg set(float x) { return _mm_set1_ps(x); }
  static SPARSEKERN_INLINE Reg of(float a, float b, float c, float d) {
    return _mm_setr_ps(a, b, c, d);
  }
  static SPARSEKERN_INLINE Reg splat(const float* p) { return _mm_broadcast_ss(p); }
  static SPARSEKERN_INLINE Reg load_quad(const float* p) { return _mm_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load_quad(const BFloat16* p) { return widened_four(p); }
  template <int I>
  static SPARSEKERN_INLINE Reg splat_of(Reg few) {
    return _mm_permute_ps(few, I * 0x55);
  }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load(const BFloat16* p) { return widened_four(p); }
  static SPARSEKERN_INLINE void store(float* p, Reg v) { _mm_storeu_ps(p, v); }
  static SPARSEKERN_INLINE __m128i first(int n) {
    return _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
  }
  static SPARSEKERN_INLINE Reg load_first(const float* p, int n) {
    return _mm_maskload_ps(p, first(n));
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg v, int n) {
    _mm_maskstore_ps(p, first(n), v);
  }
  static SPARSEKERN_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm_fmadd_ps(a, b, c); }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm_add_ps(a, b); }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return _mm_mul_ps(a, b); }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return _mm_div_ps(a, b); }
  static SPARSEKERN_INLINE Reg min(Reg a, Reg b) { return _mm_min_ps(a, b); }
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return _mm_max_ps(a, b); }
  static SPARSEKERN_INLINE Reg round(Reg a) {
    return _mm_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static SPARSEKERN_INLINE Reg exp2i(Reg n) {
    return _mm_castsi128_ps(
        _mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127)), 23));
  }

  static SPARSEKERN_INLINE void load_transposed(const float* src, int64_t stride, int rows,
                                                Reg out[4]) {
    Reg in[4];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) in[i] = load(src + (i < rows ? i : rows - 1) * stride);
    const Reg a = _mm_unpacklo_ps(in[0], in[1]), b = _mm_unpackhi_ps(in[0], in[1]);
    const Reg c = _mm_unpacklo_ps(in[2], in[3]), d = _mm_unpackhi_ps(in[2], in[3]);
    out[0] = _mm_movelh_ps(a, c);
    out[1] = _mm_movehl_ps(c, a);
    out[2] = _mm_movelh_ps(b, d);
    out[3] = _mm_movehl_ps(d, b);
  }
};

}  // namespace sparsekern::avx2
