// The portable kernels: no intrinsics, no region; whatever the compiler's base target offers.
#include "cpu/isa/portable.h"

#include <stddef.h>
#include <stdint.h>

#include "core/grad.h"
#include "core/view.h"
#include "cpu/grad_kernel.h"
#include "cpu/isa/region.h"
#include "cpu/kernel.h"

namespace sparsekern::portable {
namespace {
#include "cpu/kernel.inl.h"
}  // namespace
}  // namespace sparsekern::portable

SPARSEKERN_DEFINE(portable, outputs_r16_portable, OutputsFamily<Vec4, Vec4, Vec4, 2, 4, 1>)
SPARSEKERN_DEFINE(portable, outputs_r8_portable, OutputsFamily<Vec4, Vec4, Vec4, 2, 4, 1>)
SPARSEKERN_DEFINE(portable, outputs_r4_portable, OutputsFamily<Vec4, Vec4, Vec4, 1, 4, 1>)
SPARSEKERN_DEFINE(portable, tokens_r8_portable, TokensFamily<Vec4, 4, 2, 12>)
SPARSEKERN_DEFINE(portable, tokens_r4_portable, TokensFamily<Vec4, 4, 2, 12>)
SPARSEKERN_DEFINE(portable, vector_r16_portable, VectorFamily<Vec4, Vec4, 2>)
SPARSEKERN_DEFINE(portable, vector_r8_portable, VectorFamily<Vec4, Vec4, 2>)
SPARSEKERN_DEFINE(portable, vector_r4_portable, VectorFamily<Vec4, Vec4, 1>)
SPARSEKERN_DEFINE(portable, tokens_r1_portable, SingleBlocks<Vec4, 12, 1>)
SPARSEKERN_DEFINE(portable, few_r1_portable, SingleBlocks<Vec4, 3, 4, RowsFamily<float, Vec4>>)
SPARSEKERN_DEFINE(portable, tokens_nm_portable, SingleNM<Vec4, 12, 1>)
SPARSEKERN_DEFINE(portable, few_nm_portable, SingleNM<Vec4, 3, 4>)

SPARSEKERN_DEFINE_GRAD(portable, grad_input_r4_portable, GradInputBlocks<Vec4, 4, 3, 96 * 1024, 4>)
SPARSEKERN_DEFINE_GRAD(portable, grad_input_r1_portable, GradInputBlocks<Vec4, 1, 6, 96 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(portable, grad_input_nm_portable, GradInputNM<Vec4, 6, 24 * 1024, 1>)
SPARSEKERN_DEFINE_GRAD(portable, grad_values_r4_portable, GradValuesBlocks<Vec4, 4, 3>)
SPARSEKERN_DEFINE_GRAD(portable, grad_values_r1_portable, GradValuesBlocks<Vec4, 1, 8>)
SPARSEKERN_DEFINE_GRAD(portable, grad_values_nm_portable, GradValuesNM<Vec4, 8>)
