// Stands in for csrc/cuda/ptx/mma.h: the instruction by its definition, summed in double.
#pragma once

#include "cuda/ptx/fragments.h"

namespace sparsekern::ptx {

template <class Number>
void multiply(void* const* lanes) {
  emulator::count_instruction("mma.m16n8k16");
  float b[16][8];
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < 8; ++column) b[k][column] = b_element<Number>(lanes, k, column);
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (int k = 0; k < 16; ++k) {
      const double a = a_element<Number>(lanes, row, k);
      for (int column = 0; column < 8; ++column) sums[column] += a * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      float& d = d_element(lanes, row, column);
      d = float(d + sums[column]);
    }
  }
}

template <class Number>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  emulator::Site site = emulator::Site::here()) {
  const uint32_t b[2] = {b0, b1};
  Operands mine{d, a, b, 0};
  emulator::meet_warp("mma", site, &mine, multiply<Number>);
}

}  // namespace sparsekern::ptx
