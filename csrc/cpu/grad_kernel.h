// What the file of an instruction set defines its kernels of gradients with.
#pragma once

#include <stdint.h>

#include "core/grad.h"

namespace sparsekern {

// The panels that the table promises, and for which scratch is reserved.
enum GradKernelPanel : int64_t {
#define SPARSEKERN_GRAD_KERNEL(name, op, format, isa, rows, multiple, panel) kPanel_##name = panel,
#include "cpu/grad_kernels.inc"
#undef SPARSEKERN_GRAD_KERNEL
};

}  // namespace sparsekern

// Defines the kernel `name` of the table in the namespace of an instruction set, by its family.
#define SPARSEKERN_DEFINE_GRAD(isa, name, ...)                                            \
  extern "C" void sparsekern_##name(const void* weight, const sparsekern::GradCall* call, \
                                    const sparsekern::GradShare* share) {                 \
    using namespace sparsekern::isa;                                                      \
    using Family = __VA_ARGS__;                                                           \
    static_assert(Family::kStride == int64_t(sparsekern::kPanel_##name), "grad_kernels"); \
    Family::run_share(*static_cast<const Family::Matrix*>(weight), *call, *share);        \
  }
