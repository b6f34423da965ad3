// What the file of an instruction set defines its kernels of convolutions with.
#pragma once

#include <stdint.h>

#include "cpu/conv_share.h"

namespace sparsekern {

enum ConvKernelPixels : int64_t {
#define SPARSEKERN_CONV_KERNEL(name, format, isa, rows, multiple, panel, step, ...) \
  kPanel_##name = panel, kStep_##name = step,
#include "cpu/conv_kernels.inc"
#undef SPARSEKERN_CONV_KERNEL
};

}  // namespace sparsekern

// Defines the kernel `name` of the table in the namespace of an instruction set, by its family.
#define SPARSEKERN_DEFINE_CONV(isa, name, ...)                                                  \
  extern "C" void sparsekern_##name(const void* weight, const void* call, bool is_bfloat16,     \
                                    const sparsekern::ConvShare* share) {                       \
    using namespace sparsekern::isa;                                                            \
    using Family = __VA_ARGS__;                                                                 \
    static_assert(Family::kPanel == int64_t(sparsekern::kPanel_##name), "conv_kernels.inc");    \
    static_assert(Family::kMostStep == int64_t(sparsekern::kStep_##name), "conv_kernels.inc");  \
    static_assert(Family::kPanel <= sparsekern::kMostConvPanel, "room for a K-tile of pixels"); \
    run_conv_of<Family, Family::Matrix>(weight, call, is_bfloat16, *share);                     \
  }
