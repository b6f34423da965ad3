// AVX-512 (F, BW, VL, DQ): vectors of 16, 8 and 4 floats, 32 registers.
//
// One token of 16-row blocks uses the 8-float form: cores that execute 512-bit operations in two
// halves (Zen 4) load two 256-bit vectors a cycle but only one of 512 bits, which a product of one
// load for each multiply-add would be bound by.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

namespace sparsekern::avx512 {

template <int kN, int kM>
struct Picks16;

struct Vec16 {
  using Reg = __m512;
  static constexpr int kLanes = 16;

  static SPARSEKERN_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static SPARSEKERN_INLINE Reg set(float x) { return _mm512_set1_ps(x); }
  static SPARSEKERN_INLINE Reg splat(const float* p) { return _mm512_set1_ps(*p); }
  static SPARSEKERN_INLINE __m512 load_pair(const float* p) {
    return _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_load_sd(reinterpret_cast<const double*>(p))));
  }
  static SPARSEKERN_INLINE Reg load_quad(const float* p) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  }
  static SPARSEKERN_INLINE Reg load_quad(const BFloat16* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm512_castsi512_ps(
        _mm512_broadcast_i32x4(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16)));
  }
  template <int I>
  static SPARSEKERN_INLINE Reg splat_of(Reg few) {
    return _mm512_shuffle_ps(few, few, I * 0x55);
  }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static SPARSEKERN_INLINE void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static SPARSEKERN_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static SPARSEKERN_INLINE Reg load_first(const float* p, int n) {
    return _mm512_maskz_loadu_ps(first(n), p);
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg v, int n) {
    _mm512_mask_storeu_ps(p, first(n), v);
  }
  // The first n numbers of every second one; it reads 2 n - 1.
  static SPARSEKERN_INLINE Reg load_even(const float* p, int n) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const uint32_t read = (uint32_t)((uint64_t{1} << (2 * n - 1)) - 1);
    return _mm512_permutex2var_ps(_mm512_maskz_loadu_ps((__mmask16)read, p), even,
                                  _mm512_maskz_loadu_ps((__mmask16)(read >> 16), p + 16));
  }
  static SPARSEKERN_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static SPARSEKERN_INLINE Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static SPARSEKERN_INLINE Reg round(Reg a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static SPARSEKERN_INLINE Reg exp2i(Reg n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }

  // How vectors of weights find their inputs (avx512_picks.h).
  template <int kN, int kM>
  using Picks = Picks16<kN, kM>;

  static SPARSEKERN_INLINE Reg sum_lanes(const Reg in[16]) {
    Reg half[8], quarter[4], pair[2];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 8; ++i) {
      half[i] = _mm512_add_ps(_mm512_unpacklo_ps(in[2 * i], in[2 * i + 1]),
                              _mm512_unpackhi_ps(in[2 * i], in[2 * i + 1]));
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      quarter[i] = _mm512_add_ps(_mm512_shuffle_ps(half[2 * i], half[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(half[2 * i], half[2 * i + 1], 0xee));
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < 2; ++i) {
      pair[i] = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2 * i], quarter[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(quarter[2 * i], quarter[2 * i + 1], 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(pair[0], pair[1], 0x88),
                         _mm512_shuffle_f32x4(pair[0], pair[1], 0xdd));
  }

  static SPARSEKERN_INLINE void load_transposed(const float* src, int64_t stride, int rows,
                                                Reg out[16]) {
    // Each row is loaded once: at strides of a power of two they share a set of L1, which does not
    // hold all sixteen until the next quarter.
    Reg row[16];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) row[i] = load(src + (i < rows ? i : rows - 1) * stride);
    transpose(row, out);
  }

  static SPARSEKERN_INLINE void transpose(const Reg row[16], Reg out[16]) {
    Reg half[16];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; i += 4) {
      const Reg a = _mm512_unpacklo_ps(row[i], row[i + 1]);
      const Reg b = _mm512_unpackhi_ps(row[i], row[i + 1]);
      const Reg c = _mm512_unpacklo_ps(row[i + 2], row[i + 3]);
      const Reg d = _mm512_unpackhi_ps(row[i + 2], row[i + 3]);
      half[i] = _mm512_shuffle_ps(a, c, 0x44);
      half[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      half[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      half[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Reg a = _mm512_shuffle_f32x4(half[i], half[i + 4], 0x88);
      const Reg b = _mm512_shuffle_f32x4(half[i], half[i + 4], 0xdd);
      const Reg c = _mm512_shuffle_f32x4(half[i + 8], half[i + 12], 0x88);
      const Reg d = _mm512_shuffle_f32x4(half[i + 8], half[i + 12], 0xdd);
      out[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      out[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      out[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      out[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
};

}  // namespace sparsekern::avx512
