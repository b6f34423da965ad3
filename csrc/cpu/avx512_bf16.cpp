// The kernels of AVX512-BF16: everything between the region's begin and end is code of that level,
// nothing else is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"
#include "cpu/kernel.h"

// gcc 12 takes the undefined operand inside its own unmasked intrinsics for a mistake (GCC PR
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

SPARSEKERN_REGION_BEGIN("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "cpu/isa/avx512.h"
#include "cpu/isa/avx512_bf16.h"
#include "cpu/isa/avx512_bf16_dots.h"

namespace sparsekern::avx512_bf16 {
namespace {
// clang-format off: each builds on the ones before it
#include "cpu/epilogue.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/lines.inl.h"
#include "cpu/pairs_panel.inl.h"
#include "cpu/dots.inl.h"
#include "cpu/pairs_chunk.inl.h"
#include "cpu/pairs.inl.h"
#include "cpu/pairs_rows.inl.h"
#include "cpu/pairs_fours.inl.h"
#include "cpu/single_rows.inl.h"
#include "cpu/pairs_single.inl.h"
// clang-format on
}  // namespace
}  // namespace sparsekern::avx512_bf16

SPARSEKERN_DEFINE(avx512_bf16, dots_r16_avx512_bf16, DotsFamily<Dots<16>, Pairs16>)
SPARSEKERN_DEFINE(avx512_bf16, dots_r8_avx512_bf16, DotsFamily<Dots<8>, Pairs16>)
SPARSEKERN_DEFINE(avx512_bf16, dots_r4_avx512_bf16, DotsFamily<Dots<4>, Pairs16>)
SPARSEKERN_DEFINE(avx512_bf16, pairs_r8_avx512_bf16, PairsFamily<Pairs16, 8, 2>)
SPARSEKERN_DEFINE(avx512_bf16, pairs_r4_avx512_bf16, PairsFamily<Pairs16, 4, 4>)
SPARSEKERN_DEFINE(avx512_bf16, pairs_r1_avx512_bf16, PairsOfBlocks<Pairs16, 4>)
SPARSEKERN_DEFINE(avx512_bf16, pairs_nm_avx512_bf16, PairsOfNM<Pairs16, 4>)

SPARSEKERN_REGION_END
#endif
