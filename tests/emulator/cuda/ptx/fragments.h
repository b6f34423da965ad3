// The elements of the matrices that mma takes, found in the registers of the lanes. Written from
// the side of the matrices, as kernels and packers go by lanes: PTX ISA 9.7.14.5.8, figures of the
// fragments of m16n8k16, and 9.7.14.6.2.2 for the sparse m16n8k32.
#pragma once

#include <cuda_runtime.h>

#include "cuda/ptx/number.h"

namespace sparsekern::ptx {

struct Operands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  uint32_t metadata;
};

inline const Operands& of_lane(void* const* lanes, int lane) {
  return *static_cast<const Operands*>(lanes[lane]);
}

inline uint16_t half(uint32_t word, int which) { return uint16_t(word >> 16 * which); }

// a[row][column] of 16 x 16.
template <class Number>
float a_element(void* const* lanes, int row, int column) {
  const Operands& owner = of_lane(lanes, row % 8 * 4 + column % 8 / 2);
  return widen<Number>(half(owner.a[column / 8 * 2 + row / 8], column % 2));
}

// b[k][column] of 16 x 8, or 32 x 8.
template <class Number>
float b_element(void* const* lanes, int k, int column) {
  const Operands& owner = of_lane(lanes, column * 4 + k % 8 / 2);
  return widen<Number>(half(owner.b[k / 8], k % 2));
}

// d[row][column] of 16 x 8.
inline float& d_element(void* const* lanes, int row, int column) {
  return of_lane(lanes, row % 8 * 4 + column / 2).d[row / 8 * 2 + column % 2];
}

// The kept-th of the 16 weights that row `row` of the sparse a keeps.
template <class Number>
float kept_element(void* const* lanes, int row, int kept) {
  const int group = kept / 2;
  const Operands& owner = of_lane(lanes, row % 8 * 4 + group % 4);
  return widen<Number>(half(owner.a[group / 4 * 2 + row / 8], kept % 2));
}

// Its column, of 32.
inline int kept_column(void* const* lanes, int row, int kept, int selector, emulator::Site site) {
  const int group = kept / 2;
  const Operands& owner = of_lane(lanes, row % 8 * 4 + selector * 2 + group / 4);
  const int places = half(owner.metadata, row / 8) >> group % 4 * 4 & 0xF;
  if ((places & 3) >= places >> 2) {
    emulator::fail("mma.sp: the metadata of row " + std::to_string(row) + ", group " +
                       std::to_string(group) + " does not ascend",
                   site);
  }
  return group * 4 + (kept % 2 == 0 ? places & 3 : places >> 2);
}

}  // namespace sparsekern::ptx
