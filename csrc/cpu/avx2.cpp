// The AVX2 kernels: everything between the region's begin and end is AVX2 code, nothing else is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/grad.h"
#include "core/view.h"
#include "cpu/grad_kernel.h"
#include "cpu/isa/region.h"
#include "cpu/kernel.h"

SPARSEKERN_REGION_BEGIN("avx2,fma")
#include "cpu/isa/avx2.h"
#include "cpu/isa/avx2_picks.h"

namespace sparsekern::avx2 {
namespace {
#include "cpu/kernel.inl.h"
}  // namespace
}  // namespace sparsekern::avx2

SPARSEKERN_DEFINE(avx2, outputs_r16_avx2, OutputsFamily<Vec8, Vec8, Vec4, 2, 6, 1>)
SPARSEKERN_DEFINE(avx2, outputs_r8_avx2, OutputsFamily<Vec8, Vec8, Vec4, 1, 6, 1>)
SPARSEKERN_DEFINE(avx2, outputs_r4_avx2, OutputsFamily<Vec4, Vec8, Vec4, 1, 6, 1>)
SPARSEKERN_DEFINE(avx2, tokens_r8_avx2, TokensFamily<Vec8, 4, 3, 12>)
SPARSEKERN_DEFINE(avx2, tokens_r4_avx2, TokensFamily<Vec8, 4, 3, 12>)
SPARSEKERN_DEFINE(avx2, vector_r16_avx2, VectorFamily<Vec8, Vec8, 2>)
SPARSEKERN_DEFINE(avx2, vector_r8_avx2, VectorFamily<Vec8, Vec8, 1>)
SPARSEKERN_DEFINE(avx2, vector_r4_avx2, VectorFamily<Vec4, Vec8, 1>)
SPARSEKERN_DEFINE(avx2, tokens_r1_avx2, SingleBlocks<Vec8, 12, 1>)
SPARSEKERN_DEFINE(avx2, few_r1_avx2, SingleBlocks<Vec8, 3, 4, RowsFamily<float, Vec4, Vec8>>)
SPARSEKERN_DEFINE(avx2, tokens_nm_avx2, SingleNM<Vec8, 12, 1>)
SPARSEKERN_DEFINE(avx2, few_nm_avx2, SingleNM<Vec8, 3, 4>)

SPARSEKERN_DEFINE_UNWIDENED(avx2, outputs_r16_avx2, FewOfBFloat16<Vec8, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, outputs_r8_avx2, FewOfBFloat16<Vec8, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, outputs_r4_avx2, FewOfBFloat16<Vec4, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, vector_r16_avx2, FewOfBFloat16<Vec8, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, vector_r8_avx2, FewOfBFloat16<Vec8, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, vector_r4_avx2, FewOfBFloat16<Vec4, Vec8, 4, 8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, few_nm_avx2, PicksOfBFloat16<Vec8>)
SPARSEKERN_DEFINE_UNWIDENED(avx2, few_r1_avx2, RowsFamily<sparsekern::BFloat16, Vec4, Vec8>)

SPARSEKERN_DEFINE_GRAD(avx2, grad_input_r4_avx2, GradInputBlocks<Vec8, 4, 3, 96 * 1024, 4>)
SPARSEKERN_DEFINE_GRAD(avx2, grad_input_r1_avx2, GradInputBlocks<Vec8, 1, 6, 192 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(avx2, grad_input_nm_avx2, GradInputNM<Vec8, 6, 24 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(avx2, grad_values_r4_avx2, GradValuesBlocks<Vec8, 4, 3>)
SPARSEKERN_DEFINE_GRAD(avx2, grad_values_r1_avx2, GradValuesBlocks<Vec8, 1, 8>)
SPARSEKERN_DEFINE_GRAD(avx2, grad_values_nm_avx2, GradValuesNM<Vec8, 8>)

SPARSEKERN_REGION_END
#endif
