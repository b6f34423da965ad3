// The kernels of AMX-BF16: everything between the region's begin and end is code of that level,
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

SPARSEKERN_REGION_BEGIN(
    "amx-tile,amx-bf16,avx512bf16,avx512vbmi2,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "cpu/isa/amx_bf16.h"
#include "cpu/isa/avx512.h"
#include "cpu/isa/avx512_bf16.h"

namespace sparsekern::amx_bf16 {
namespace {
// clang-format off: each builds on the ones before it
#include "cpu/epilogue.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/pairs_panel.inl.h"
#include "cpu/tiles_chunk.inl.h"
#include "cpu/tiles_blocks.inl.h"
#include "cpu/tiles_rows.inl.h"
#include "cpu/tiles.inl.h"
// clang-format on
}  // namespace
}  // namespace sparsekern::amx_bf16

SPARSEKERN_DEFINE(amx_bf16, tiles_r4_amx_bf16, TilesFamily<Tiles16, StripBlocks<Tiles16>>)
SPARSEKERN_DEFINE(amx_bf16, tiles_r1_amx_bf16, TilesFamily<Tiles16, AnyBlocks<Tiles16>>)
SPARSEKERN_DEFINE(amx_bf16, tiles_nm_amx_bf16, TilesFamily<Tiles16, Groups<Tiles16>>)

SPARSEKERN_REGION_END
#endif
