// Stands in for the compiler's header of this name: AVX2 and AVX-512 by SIMDe, AMX by tiles.h, in
// plain C++ that any CPU runs and that sanitizers see through. Defines what SIMDe 0.7.4 lacks, and
// anew the masked loads that it makes of whole ones: the instructions do not touch a lane that is
// masked out.
#pragma once

#pragma GCC diagnostic ignored "-Wpsabi"
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstring>

#include "tiles.h"

#ifndef __mmask16
using __mmask16 = simde__mmask16;
#endif
#ifndef __mmask32
using __mmask32 = simde__mmask32;
#endif
#ifndef __m512bh
using __m512bh = simde__m512bh;
#endif
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

#ifndef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulated_mm512_maskz_loadu_ps
inline __m512 emulated_mm512_maskz_loadu_ps(__mmask16 mask, const float* p) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = mask >> i & 1 ? p[i] : 0.0f;
  return _mm512_loadu_ps(lanes);
}
#endif

#ifndef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps emulated_mm512_mask_storeu_ps
inline void emulated_mm512_mask_storeu_ps(float* p, __mmask16 mask, __m512 v) {
  float lanes[16];
  _mm512_storeu_ps(lanes, v);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) p[i] = lanes[i];
  }
}
#endif

#ifndef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated_mm512_cvtps_epi32
inline __m512i emulated_mm512_cvtps_epi32(__m512 v) {
  float lanes[16];
  int32_t rounded[16];
  _mm512_storeu_ps(lanes, v);
  // As the instruction has it: whatever does not fit becomes the smallest integer.
  for (int i = 0; i < 16; ++i) {
    const float x = std::nearbyint(lanes[i]);
    rounded[i] = x >= -2147483648.0f && x < 2147483648.0f ? int32_t(x) : INT32_MIN;
  }
  return _mm512_loadu_si512(rounded);
}
#endif

#ifndef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emulated_mm512_cvtepu16_epi32
inline __m512i emulated_mm512_cvtepu16_epi32(__m256i v) {
  uint16_t from[16];
  int32_t wide[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(from), v);
  for (int i = 0; i < 16; ++i) wide[i] = from[i];
  return _mm512_loadu_si512(wide);
}
#endif

#ifndef _mm512_permutevar_ps
#define _mm512_permutevar_ps emulated_mm512_permutevar_ps
inline __m512 emulated_mm512_permutevar_ps(__m512 v, __m512i index) {
  float lanes[16], picked[16];
  int32_t places[16];
  _mm512_storeu_ps(lanes, v);
  _mm512_storeu_si512(places, index);
  for (int i = 0; i < 16; ++i) picked[i] = lanes[i / 4 * 4 + (places[i] & 3)];
  return _mm512_loadu_ps(picked);
}
#endif

#ifndef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_mm512_shuffle_f32x4
inline __m512 emulated_mm512_shuffle_f32x4(__m512 a, __m512 b, int control) {
  float from[2][16], lanes[16];
  _mm512_storeu_ps(from[0], a);
  _mm512_storeu_ps(from[1], b);
  for (int i = 0; i < 16; ++i) lanes[i] = from[i / 8][(control >> i / 4 * 2 & 3) * 4 + i % 4];
  return _mm512_loadu_ps(lanes);
}
#endif

#ifndef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 emulated_mm512_shuffle_epi8
inline __m512i emulated_mm512_shuffle_epi8(__m512i v, __m512i places) {
  uint8_t from[64], to[64], place[64];
  _mm512_storeu_si512(from, v);
  _mm512_storeu_si512(place, places);
  for (int i = 0; i < 64; ++i) to[i] = place[i] & 0x80 ? 0 : from[i / 16 * 16 + (place[i] & 15)];
  return _mm512_loadu_si512(to);
}
#endif

#ifndef _mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi16 emulated_mm512_maskz_loadu_epi16
inline __m512i emulated_mm512_maskz_loadu_epi16(uint32_t mask, const void* p) {
  uint16_t lanes[32] = {};
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) std::memcpy(lanes + i, static_cast<const char*>(p) + 2 * i, 2);
  }
  return _mm512_loadu_si512(lanes);
}
#endif

#ifndef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16 emulated_mm512_mask_storeu_epi16
inline void emulated_mm512_mask_storeu_epi16(void* p, uint32_t mask, __m512i v) {
  uint16_t lanes[32];
  _mm512_storeu_si512(lanes, v);
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<char*>(p) + 2 * i, lanes + i, 2);
  }
}
#endif

#ifndef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh emulated_mm512_cvtne2ps_pbh
inline __m512i emulated_mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  uint32_t lanes[32];
  uint16_t rounded[32];
  _mm512_storeu_ps(reinterpret_cast<float*>(lanes), low);
  _mm512_storeu_ps(reinterpret_cast<float*>(lanes + 16), high);
  for (int i = 0; i < 32; ++i) {
    const bool nan = (lanes[i] & 0x7fffffff) > 0x7f800000;
    const uint32_t even = lanes[i] + 0x7fff + (lanes[i] >> 16 & 1);
    rounded[i] = uint16_t(nan ? lanes[i] >> 16 | 0x40 : even >> 16);
  }
  return _mm512_loadu_si512(rounded);
}
#endif

#undef _mm_maskload_ps
#define _mm_maskload_ps emulated_mm_maskload_ps
inline __m128 emulated_mm_maskload_ps(const float* p, __m128i mask) {
  float lanes[4];
  int32_t bits[4];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bits), mask);
  for (int i = 0; i < 4; ++i) lanes[i] = bits[i] < 0 ? p[i] : 0.0f;
  return _mm_loadu_ps(lanes);
}

#undef _mm256_maskload_ps
#define _mm256_maskload_ps emulated_mm256_maskload_ps
inline __m256 emulated_mm256_maskload_ps(const float* p, __m256i mask) {
  float lanes[8];
  int32_t bits[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), mask);
  for (int i = 0; i < 8; ++i) lanes[i] = bits[i] < 0 ? p[i] : 0.0f;
  return _mm256_loadu_ps(lanes);
}

#undef _mm512_maskz_expand_epi16
#define _mm512_maskz_expand_epi16 emulated_mm512_maskz_expand_epi16
inline __m512i emulated_mm512_maskz_expand_epi16(uint32_t mask, __m512i v) {
  uint16_t from[32], to[32];
  _mm512_storeu_si512(from, v);
  const uint16_t* next = from;
  for (int i = 0; i < 32; ++i) to[i] = mask >> i & 1 ? *next++ : 0;
  return _mm512_loadu_si512(to);
}

// N lanes of one kind made into as many of another.
template <class To, class From, int N>
inline void emulated_convert(const void* v, void* converted) {
  From from[N];
  To to[N];
  std::memcpy(from, v, sizeof from);
  for (int i = 0; i < N; ++i) to[i] = To(from[i]);
  std::memcpy(converted, to, sizeof to);
}

#ifndef _mm512_cvtepu8_epi16
#define _mm512_cvtepu8_epi16 emulated_mm512_cvtepu8_epi16
inline __m512i emulated_mm512_cvtepu8_epi16(__m256i v) {
  __m512i to;
  emulated_convert<uint16_t, uint8_t, 32>(&v, &to);
  return to;
}
#endif

#ifndef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 emulated_mm512_cvtepi32_epi8
inline __m128i emulated_mm512_cvtepi32_epi8(__m512i v) {
  __m128i to;
  emulated_convert<uint8_t, uint32_t, 16>(&v, &to);
  return to;
}
#endif

#ifndef _mm512_cvtepi64_epi16
#define _mm512_cvtepi64_epi16 emulated_mm512_cvtepi64_epi16
inline __m128i emulated_mm512_cvtepi64_epi16(__m512i v) {
  __m128i to;
  emulated_convert<uint16_t, uint64_t, 8>(&v, &to);
  return to;
}
#endif

#ifndef _mm512_cmpeq_epi16_mask
#define _mm512_cmpeq_epi16_mask emulated_mm512_cmpeq_epi16_mask
inline uint32_t emulated_mm512_cmpeq_epi16_mask(__m512i a, __m512i b) {
  uint16_t left[32], right[32];
  _mm512_storeu_si512(left, a);
  _mm512_storeu_si512(right, b);
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= uint32_t(left[i] == right[i]) << i;
  return mask;
}
#endif
