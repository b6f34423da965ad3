// movmatrix: the transpose of a matrix of 8 x 8 16-bit numbers in the registers of a warp. PTX ISA
// 9.7.14.5.17; sm_75 on.
//
// Lane 4 g + q holds the numbers 2 q and 2 q + 1 of row g.
#pragma once

#include <stdint.h>

namespace sparsekern::ptx {

__device__ inline uint32_t movmatrix_trans(uint32_t row_pair) {
  uint32_t column_pair;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column_pair) : "r"(row_pair));
  return column_pair;
}

}  // namespace sparsekern::ptx
