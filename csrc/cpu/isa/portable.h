// Any CPU: vectors of 4 floats by the compiler's vector extension (SSE2 on x86-64, NEON on Arm).
#pragma once

#include <stdint.h>

#include "cpu/isa/region.h"

namespace sparsekern::portable {

template <int kN, int kM>
struct Picks4;

struct Vec4 {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;

  static SPARSEKERN_INLINE Reg set(float x) { return Reg{x, x, x, x}; }
  static SPARSEKERN_INLINE Reg of(float a, float b, float c, float d) { return Reg{a, b, c, d}; }
  static SPARSEKERN_INLINE Reg zero() { return set(0.0f); }
  static SPARSEKERN_INLINE Reg splat(const float* p) { return set(*p); }
  static SPARSEKERN_INLINE Reg load(const float* p) {
    Reg v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SPARSEKERN_INLINE Reg load_pair(const float* p) { return Reg{p[0], p[1], p[0], p[1]}; }
  static SPARSEKERN_INLINE Reg load_quad(const float* p) { return load(p); }
  template <int I>
  static SPARSEKERN_INLINE Reg splat_of(Reg few) {
    return set(few[I]);
  }
  static SPARSEKERN_INLINE void store(float* p, Reg v) { __builtin_memcpy(p, &v, sizeof v); }
  static SPARSEKERN_INLINE Reg load_first(const float* p, int n) {
    Reg v = zero();
    for (int i = 0; i < n && i < kLanes; ++i) v[i] = p[i];
    return v;
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg v, int n) {
    for (int i = 0; i < n && i < kLanes; ++i) p[i] = v[i];
  }
  // The first n numbers of every second one; it reads 2 n - 1.
  static SPARSEKERN_INLINE Reg load_even(const float* p, int n) {
    Reg v = zero();
    for (int i = 0; i < n; ++i) v[i] = p[2 * i];
    return v;
  }
  static SPARSEKERN_INLINE Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return a + b; }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return a * b; }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return a / b; }
  static SPARSEKERN_INLINE Reg min(Reg a, Reg b) { return a < b ? a : b; }
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static SPARSEKERN_INLINE Reg round(Reg a) {
    // Adding and taking away 1.5 * 2^23 leaves no room for a fraction.
    const Reg magic = set(12582912.0f);
    return (a + magic) - magic;
  }
  static SPARSEKERN_INLINE Reg exp2i(Reg n) {
    const Int biased = (__builtin_convertvector(n, Int) + 127) << 23;
    Reg v;
    __builtin_memcpy(&v, &biased, sizeof v);
    return v;
  }

  // How vectors of weights find their inputs.
  template <int kN, int kM>
  using Picks = Picks4<kN, kM>;

  static SPARSEKERN_INLINE Reg sum_lanes(const Reg in[4]) {
    Reg sum;
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) sum[i] = (in[i][0] + in[i][1]) + (in[i][2] + in[i][3]);
    return sum;
  }

  static SPARSEKERN_INLINE void load_transposed(const float* src, int64_t stride, int rows,
                                                Reg out[4]) {
    Reg in[4];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4; ++i) in[i] = load(src + (i < rows ? i : rows - 1) * stride);
    SPARSEKERN_UNROLL
    for (int j = 0; j < 4; ++j) out[j] = Reg{in[0][j], in[1][j], in[2][j], in[3][j]};
  }
};

// n:m that vectors of tokens serve as well.
template <int kN, int kM>
struct Picks4 {
  static constexpr int64_t kMostTokens = 0;
};

// 2:4: a vector has the weights of two rows in one group.
template <>
struct Picks4<2, 4> {
  static constexpr int64_t kMostTokens = 11;
  static constexpr int kTokens = 4, kSums = 8;
  struct Places {
    uint8_t bytes[8];
  };
  using Index = Vec4::Int;
  using Inputs = Vec4::Reg;
  static SPARSEKERN_INLINE Places places(const uint8_t* p) {
    Places places;
    __builtin_memcpy(&places, p, sizeof places);
    return places;
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Places places) {
    // Two groups' positions a byte, and two rows of four groups in each half.
    constexpr int q = v / 2, half = v % 2;
    const int low = places.bytes[half * 4 + q / 2] >> (q % 2 * 4);
    const int high = places.bytes[half * 4 + 2 + q / 2] >> (q % 2 * 4);
    return Index{low & 3, low >> 2 & 3, high & 3, high >> 2 & 3};
  }
  template <int v>
  static SPARSEKERN_INLINE Inputs inputs(const float* x) {
    return Vec4::load(x + 4 * v);
  }
  static SPARSEKERN_INLINE Vec4::Reg pick(Inputs group, Index index) {
    return Inputs{group[index[0]], group[index[1]], group[index[2]], group[index[3]]};
  }
};

}  // namespace sparsekern::portable
