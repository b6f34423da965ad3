// ldmatrix: four matrices of 8 x 8 16-bit numbers from shared memory into the registers of a warp.
// PTX ISA 9.7.14.5.15; sm_75 on.
//
// Lane 8 i + j gives the address, a multiple of 16, of row j of matrix i. Lane 4 g + q receives in
// word i the numbers 2 q and 2 q + 1 of row g of matrix i; with trans, of its column g.
#pragma once

#include <stdint.h>

#include "cuda/ptx/memory.h"

namespace sparsekern::ptx {

__device__ inline void ldmatrix(uint32_t (&d)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row.at)
               : "memory");
}

__device__ inline void ldmatrix_trans(uint32_t (&d)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row.at)
               : "memory");
}

}  // namespace sparsekern::ptx
