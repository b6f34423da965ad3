// Stands in for csrc/cuda/ptx/mma_sp.h: the instruction by its definition, summed in double.
#pragma once

#include "cuda/ptx/fragments.h"

namespace sparsekern::ptx {

inline thread_local emulator::Site sparse_site;

template <class Number, int kSelector>
void multiply_sparse(void* const* lanes) {
  emulator::count_instruction("mma.sp.m16n8k32");
  float b[32][8];
  for (int k = 0; k < 32; ++k) {
    for (int column = 0; column < 8; ++column) b[k][column] = b_element<Number>(lanes, k, column);
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (int kept = 0; kept < 16; ++kept) {
      const double a = kept_element<Number>(lanes, row, kept);
      const int k = kept_column(lanes, row, kept, kSelector, sparse_site);
      for (int column = 0; column < 8; ++column) sums[column] += a * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      float& d = d_element(lanes, row, column);
      d = float(d + sums[column]);
    }
  }
}

template <class Number, int kSelector>
void mma_sp_m16n8k32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                     uint32_t metadata, emulator::Site site = emulator::Site::here()) {
  static_assert(kSelector == 0 || kSelector == 1);
  Operands mine{d, a, b, metadata};
  sparse_site = site;
  emulator::meet_warp("mma.sp", site, &mine, multiply_sparse<Number, kSelector>);
}

}  // namespace sparsekern::ptx
