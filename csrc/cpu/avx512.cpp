// The AVX-512 kernels: everything between the region's begin and end is AVX-512 code, nothing else
// is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/grad.h"
#include "core/view.h"
#include "cpu/grad_kernel.h"
#include "cpu/isa/region.h"
#include "cpu/kernel.h"

// gcc 12 takes the undefined operand inside its own unmasked intrinsics for a mistake (GCC PR
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

SPARSEKERN_REGION_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "cpu/isa/avx2.h"
#include "cpu/isa/avx2_picks.h"
#include "cpu/isa/avx512.h"
#include "cpu/isa/avx512_picks.h"

namespace sparsekern::avx512 {
namespace {
#include "cpu/kernel.inl.h"
}  // namespace
}  // namespace sparsekern::avx512

using sparsekern::avx2::Vec4;
using sparsekern::avx2::Vec8;

// A chunk and a panel fill most of an L2 of 1 MiB, the least of server cores with AVX-512.
SPARSEKERN_DEFINE(avx512, outputs_r32_avx512,
                  OutputsFamily<Vec16, Vec16, Vec4, 2, 12, 4, 512 * 1024>)
SPARSEKERN_DEFINE(avx512, outputs_r16_avx512,
                  OutputsFamily<Vec16, Vec16, Vec4, 1, 16, 4, 512 * 1024>)
SPARSEKERN_DEFINE(avx512, tokens_r8_avx512, TokensFamily<Vec16, 8, 3, 0, 384 * 1024, 72 * 1024>)
SPARSEKERN_DEFINE(avx512, tokens_r4_avx512, TokensFamily<Vec16, 4, 4, 0, 384 * 1024, 72 * 1024>)
SPARSEKERN_DEFINE(avx512, vector_r16_avx512, VectorFamily<Vec8, Vec16, 2, Vec16, 16, 16>)
SPARSEKERN_DEFINE(avx512, vector_r8_avx512, VectorFamily<Vec8, Vec16, 1, Vec8, 16, 16>)
SPARSEKERN_DEFINE(avx512, vector_r4_avx512, VectorFamily<Vec4, Vec16, 1, Vec4, 16, 16>)
SPARSEKERN_DEFINE(avx512, tokens_r1_avx512, SingleBlocks<Vec16, 8, 1>)
SPARSEKERN_DEFINE(avx512, few_r1_avx512,
                  SingleBlocks<Vec16, 4, 4, RowsFamily<float, Vec4, Vec8, Vec16>>)
SPARSEKERN_DEFINE(avx512, tokens_nm_avx512, SingleNM<Vec16, 8, 1>)
SPARSEKERN_DEFINE(avx512, few_nm_avx512, SingleNM<Vec16, 4, 4>)

SPARSEKERN_DEFINE_UNWIDENED(avx512, vector_r16_avx512, FewOfBFloat16<Vec16, Vec16, 16, 16>)
SPARSEKERN_DEFINE_UNWIDENED(avx512, vector_r8_avx512, FewOfBFloat16<Vec8, Vec16, 16, 16>)
SPARSEKERN_DEFINE_UNWIDENED(avx512, vector_r4_avx512, FewOfBFloat16<Vec4, Vec16, 16, 16>)
SPARSEKERN_DEFINE_UNWIDENED(avx512, few_nm_avx512, PicksOfBFloat16<Vec16>)
SPARSEKERN_DEFINE_UNWIDENED(avx512, few_r1_avx512,
                            RowsFamily<sparsekern::BFloat16, Vec4, Vec8, Vec16>)

SPARSEKERN_DEFINE_GRAD(avx512, grad_input_r8_avx512, GradInputBlocks<Vec16, 8, 3, 192 * 1024, 2>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_input_r4_avx512, GradInputBlocks<Vec16, 4, 4, 256 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_input_r1_avx512, GradInputBlocks<Vec16, 2, 6, 384 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_input_nm_avx512, GradInputNM<Vec16, 6, 24 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_values_r4_avx512, GradValuesBlocks<Vec16, 4, 6>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_values_r1_avx512, GradValuesBlocks<Vec16, 2, 8>)
SPARSEKERN_DEFINE_GRAD(avx512, grad_values_nm_avx512, GradValuesNM<Vec16, 8>)

SPARSEKERN_REGION_END
#endif
