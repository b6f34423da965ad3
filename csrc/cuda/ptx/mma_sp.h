// mma.sp::ordered_metadata of m16n8k32: d += a * b by one warp, where a is 16 x 32 with 2 of every
// 4 along k kept, b 32 x 8, d 16 x 8. PTX ISA 9.7.14.6; sm_80 on, CUDA 12.5 on.
//
// Lane 4 g + q (g < 8, q < 4) holds
//   a[r]:     the two kept of row g + 8 (r % 2) and k = 4 c .. 4 c + 3, where c = q + 4 (r / 2);
//   b[r]:     k = 8 r + 2 q and the next, column g;
//   d[i]:     row g + 8 (i / 2), column 2 q + i % 2;
//   metadata: in the lanes q = 2 kSelector + h (h < 2) the places of row g (low 16 bits) and of row
//             g + 8, for k = 16 h .. 16 h + 15: 2 bits each, the first kept lowest, ascending
//             within four. The other lanes' words are not read, so one register serves two
//             instructions.
#pragma once

#include <stdint.h>

#include "cuda/ptx/number.h"

namespace sparsekern::ptx {

template <class Number, int kSelector>
__device__ inline void mma_sp_m16n8k32(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[4], uint32_t metadata) {
  if constexpr (Number::kIsBFloat16) {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(metadata), "n"(kSelector));
  } else {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(metadata), "n"(kSelector));
  }
}

}  // namespace sparsekern::ptx
