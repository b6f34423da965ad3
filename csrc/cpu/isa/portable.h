// Any CPU: vectors of 4 floats by the compiler's vector extension (SSE2 on x86-64, NEON on Arm).
#pragma once

#include <stdint.h>

#include "cpu/isa/region.h"

namespace sparsekern::portable {

struct Vec4 {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;

  static SPARSEKERN_INLINE Reg set(float x) { return Reg{x, x, x, x}; }
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

  // Positions in 2:4 (layouts/fragments.py): the two words of a g, and where in its group each of
  // vector v's lanes picks.
  struct Picks {
    uint8_t bytes[8];
  };
  typedef Int Index;
  static SPARSEKERN_INLINE Picks picks(const uint8_t* p) {
    Picks picks;
    __builtin_memcpy(&picks, p, sizeof picks);
    return picks;
  }
  template <int v>
  static SPARSEKERN_INLINE Index index(Picks picks) {
    // Two groups' positions a byte, and two rows of four groups in each half.
    constexpr int q = v / 2, half = v % 2;
    const int low = picks.bytes[half * 4 + q / 2] >> (q % 2 * 4);
    const int high = picks.bytes[half * 4 + 2 + q / 2] >> (q % 2 * 4);
    return Int{low & 3, low >> 2 & 3, high & 3, high >> 2 & 3};
  }
  static SPARSEKERN_INLINE Reg pick(Reg group, Index index) {
    return Reg{group[index[0]], group[index[1]], group[index[2]], group[index[3]]};
  }

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

}  // namespace sparsekern::portable
