// The portable kernels of convolutions (portable.cpp).
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/conv_kernel.h"
#include "cpu/isa/portable.h"
#include "cpu/isa/region.h"

namespace sparsekern::portable {
namespace {
#include "cpu/conv.inl.h"
}  // namespace
}  // namespace sparsekern::portable

SPARSEKERN_DEFINE_CONV(portable, conv_r4_portable, ConvBlocks<Vec4, 4, 2>)
SPARSEKERN_DEFINE_CONV(portable, conv_r1_portable, ConvSingleBlocks<Vec4, 12, 1>)
SPARSEKERN_DEFINE_CONV(portable, conv_nm_portable, ConvNM<Vec4, 12, 1>)
