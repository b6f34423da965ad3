// The AVX-512 kernels: everything between the region's begin and end is AVX-512 code, nothing else
// is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

// gcc 12 takes the undefined operand inside its own unmasked intrinsics for a mistake (GCC PR
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

SPARSEKERN_REGION_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#include "cpu/isa/avx2.h"
#include "cpu/isa/avx512.h"

namespace sparsekern::avx512 {
namespace {
// clang-format off: each builds on the ones before it
#include "cpu/epilogue.inl.h"
#include "cpu/pack.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/outputs.inl.h"
#include "cpu/tokens.inl.h"
// clang-format on
}  // namespace
}  // namespace sparsekern::avx512

#define SPARSEKERN_DEFINE(name, ...)                                    \
  extern "C" void sparsekern_##name(const sparsekern::BlockMatrix* a,   \
                                    const sparsekern::LinearCall* call, \
                                    const sparsekern::Share* share) {   \
    using namespace sparsekern::avx512;                                 \
    run_share<__VA_ARGS__>(*a, *call, *share);                          \
  }

using sparsekern::avx2::Vec4;
using sparsekern::avx2::Vec8;

SPARSEKERN_DEFINE(outputs_r32_avx512, OutputsFamily<Vec16, Vec16, 2, 12>)
SPARSEKERN_DEFINE(outputs_r16_avx512, OutputsFamily<Vec8, Vec16, 2, 12>)
SPARSEKERN_DEFINE(outputs_r8_avx512, OutputsFamily<Vec8, Vec16, 1, 12>)
SPARSEKERN_DEFINE(outputs_r4_avx512, OutputsFamily<Vec4, Vec16, 1, 12>)
SPARSEKERN_DEFINE(tokens_r8_avx512, TokensFamily<Vec16, 8, 3>)
SPARSEKERN_DEFINE(tokens_r4_avx512, TokensFamily<Vec16, 4, 3>)

SPARSEKERN_REGION_END
#endif
