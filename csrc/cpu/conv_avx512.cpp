// The AVX-512 kernels of convolutions (avx512.cpp).
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/conv_kernel.h"
#include "cpu/isa/region.h"

// gcc 12 takes the undefined operand inside its own unmasked intrinsics for a mistake (GCC PR
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

SPARSEKERN_REGION_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "cpu/isa/avx2.h"
#include "cpu/isa/avx512.h"

namespace sparsekern::avx512 {
namespace {
#include "cpu/conv.inl.h"
}  // namespace
}  // namespace sparsekern::avx512

SPARSEKERN_DEFINE_CONV(avx512, conv_r16_avx512, ConvOutputs<Vec16, 28>)
SPARSEKERN_DEFINE_CONV(avx512, conv_r8_avx512, ConvBlocks<Vec16, 8, 3>)
SPARSEKERN_DEFINE_CONV(avx512, conv_r4_avx512, ConvBlocks<Vec16, 4, 6>)
SPARSEKERN_DEFINE_CONV(avx512, conv_r1_avx512, ConvSingleBlocks<Vec16, 6, 2>)
SPARSEKERN_DEFINE_CONV(avx512, conv_nm_avx512, ConvNM<Vec16, 6, 2>)

SPARSEKERN_REGION_END
#endif
