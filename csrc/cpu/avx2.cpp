// The AVX2 kernels: everything between the region's begin and end is AVX2 code, nothing else is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

SPARSEKERN_REGION_BEGIN("avx2,fma")
#include "cpu/isa/avx2.h"

namespace sparsekern::avx2 {
namespace {
// clang-format off: each builds on the ones before it
#include "cpu/epilogue.inl.h"
#include "cpu/pack.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/outputs.inl.h"
#include "cpu/tokens.inl.h"
// clang-format on
}  // namespace
}  // namespace sparsekern::avx2

#define SPARSEKERN_DEFINE(name, ...)                                    \
  extern "C" void sparsekern_##name(const sparsekern::BlockMatrix* a,   \
                                    const sparsekern::LinearCall* call, \
                                    const sparsekern::Share* share) {   \
    using namespace sparsekern::avx2;                                   \
    run_share<__VA_ARGS__>(*a, *call, *share);                          \
  }

SPARSEKERN_DEFINE(outputs_r16_avx2, OutputsFamily<Vec8, Vec8, 2, 6>)
SPARSEKERN_DEFINE(outputs_r8_avx2, OutputsFamily<Vec8, Vec8, 1, 6>)
SPARSEKERN_DEFINE(outputs_r4_avx2, OutputsFamily<Vec4, Vec8, 1, 6>)
SPARSEKERN_DEFINE(tokens_r8_avx2, TokensFamily<Vec8, 4, 3>)
SPARSEKERN_DEFINE(tokens_r4_avx2, TokensFamily<Vec8, 4, 3>)

SPARSEKERN_REGION_END
#endif
