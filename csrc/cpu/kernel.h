// What the file of an instruction set defines its kernels with.
#pragma once

#include <stdint.h>

#include "core/view.h"

namespace sparsekern {

// The tiles that the table promises: scratch is reserved for them, and the plan counts with them.
enum KernelTile : int64_t {
#define SPARSEKERN_KERNEL(name, format, isa, rows, multiple, min_tokens, panel, family, outputs, \
                          lanes)                                                                 \
  kPanel_##name = panel, kFamily_##name = int64_t(KernelFamily::family),                         \
  kOutputs_##name = outputs, kLanes_##name = lanes,
#include "cpu/kernels.inc"
#undef SPARSEKERN_KERNEL
};

}  // namespace sparsekern

// Defines the kernel `name` of the table in the namespace of an instruction set, by its family.
#define SPARSEKERN_DEFINE(isa, name, ...)                                                   \
  extern "C" void sparsekern_##name(const void* weight, const sparsekern::LinearCall* call, \
                                    const sparsekern::Share* share) {                       \
    using namespace sparsekern::isa;                                                        \
    using Family = __VA_ARGS__;                                                             \
    static_assert(Family::kPanel == int64_t(sparsekern::kPanel_##name) &&                   \
                      int64_t(Family::kFamily) == int64_t(sparsekern::kFamily_##name) &&    \
                      Family::kTileOutputs == int64_t(sparsekern::kOutputs_##name) &&       \
                      Family::kTileLanes == int64_t(sparsekern::kLanes_##name),             \
                  "kernels.inc");                                                           \
    Family::run_share(*static_cast<const Family::Matrix*>(weight), *call, *share);          \
  }
