// mma of m16n8k16: d += a * b by one warp, where a is 16 x 16, b 16 x 8, d 16 x 8. PTX ISA
// 9.7.14.5.8; sm_80 on.
//
// Lane 4 g + q (g < 8, q < 4) holds
//   a[r]: row g + 8 (r % 2), columns 8 (r / 2) + 2 q and the next;
//   b[r]: k = 8 r + 2 q and the next, column g;
//   d[i]: row g + 8 (i / 2), column 2 q + i % 2.
#pragma once

#include <stdint.h>

#include "cuda/ptx/number.h"

namespace sparsekern::ptx {

template <class Number>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  if constexpr (Number::kIsBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace sparsekern::ptx
