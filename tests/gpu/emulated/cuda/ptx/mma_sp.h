// Stands in for csrc/cuda/ptx/mma_sp.h: the instructions element by element, as the PTX ISA defines
// them (9.7.14.6.1 and 9.7.14.6.2.2). Written from the side of the matrices, as the packer and the
// kernel go by lanes.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include <cmath>
#include <cstdlib>

namespace sparsekern::ptx {

struct Fragments {
  uint32_t a[4], b[4], metadata;
};

inline Fragments warp_fragments[32];

inline uint32_t half_word(uint32_t word, int which) { return word >> 16 * which & 0xFFFF; }

// One of the 16 weights that a row keeps: its bits.
inline uint32_t kept_bits(int row, int kept) {
  const int chunk = kept / 2;
  const Fragments& owner = warp_fragments[row % 8 * 4 + chunk % 4];
  return half_word(owner.a[chunk / 4 * 2 + row / 8], kept % 2);
}

// Its column.
inline int kept_column(int row, int kept, int selector) {
  const int chunk = kept / 2;
  const Fragments& owner = warp_fragments[row % 8 * 4 + selector * 2 + chunk / 4];
  const int places = half_word(owner.metadata, row / 8) >> chunk % 4 * 4 & 0xF;
  // Otherwise undefined.
  if ((places & 3) >= places >> 2) std::abort();
  return chunk * 4 + (kept % 2 == 0 ? places & 3 : places >> 2);
}

inline uint32_t b_bits(int k, int column) {
  const Fragments& owner = warp_fragments[column * 4 + k % 8 / 2];
  return half_word(owner.b[k / 8], k % 2);
}

inline double from_bfloat16(uint32_t bits) {
  const int exponent = bits >> 7 & 0xFF, fraction = bits & 0x7F;
  const double size = exponent == 0xFF ? (fraction ? NAN : INFINITY)
                      : exponent == 0  ? std::ldexp(fraction, -133)
                                       : std::ldexp(fraction + 0x80, exponent - 134);
  return bits & 0x8000 ? -size : size;
}

inline double from_float16(uint32_t bits) {
  const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  const double size = exponent == 0x1F ? (fraction ? NAN : INFINITY)
                      : exponent == 0  ? std::ldexp(fraction, -24)
                                       : std::ldexp(fraction + 0x400, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

inline void mma_sp_m16n8k32(float (&d)[4], const Fragments& mine, int selector,
                            double (*number)(uint32_t)) {
  const int lane = threadIdx.x;
  warp_fragments[lane] = mine;
  warp_barrier.wait();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int kept = 0; kept < 16; ++kept) {
      sum +=
          number(kept_bits(row, kept)) * number(b_bits(kept_column(row, kept, selector), column));
    }
    d[i] = float(sum);
  }
  warp_barrier.wait();  // before anybody's next one
}

template <int kSelector>
void mma_sp_m16n8k32_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                          uint32_t metadata) {
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, metadata};
  mma_sp_m16n8k32(d, mine, kSelector, from_bfloat16);
}

template <int kSelector>
void mma_sp_m16n8k32_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                         uint32_t metadata) {
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, metadata};
  mma_sp_m16n8k32(d, mine, kSelector, from_float16);
}

}  // namespace sparsekern::ptx
