// The AVX2 kernels of convolutions (avx2.cpp).
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/conv_kernel.h"
#include "cpu/isa/region.h"

SPARSEKERN_REGION_BEGIN("avx2,fma")
#include "cpu/isa/avx2.h"

namespace sparsekern::avx2 {
namespace {
#include "cpu/conv.inl.h"
}  // namespace
}  // namespace sparsekern::avx2

SPARSEKERN_DEFINE_CONV(avx2, conv_r4_avx2, ConvBlocks<Vec8, 4, 3>)
SPARSEKERN_DEFINE_CONV(avx2, conv_r1_avx2, ConvSingleBlocks<Vec8, 12, 1>)
SPARSEKERN_DEFINE_CONV(avx2, conv_nm_avx2, ConvNM<Vec8, 12, 1>)

SPARSEKERN_REGION_END
#endif
