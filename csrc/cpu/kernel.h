// What the file of an instruction set defines its kernels with.
#pragma once

#include <stdint.h>

#include "core/view.h"

namespace sparsekern {

// What the table promises: numbers, and tiles, for which scratch is reserved and with which the
// plan counts.
enum KernelTile : int64_t {
#define SPARSEKERN_KERNEL(name, format, numbers, isa, rows, multiple, min_tokens, panel, family, \
                          outputs, lanes, ...)                                                   \
  kBFloat16_##name = Numbers::numbers == Numbers::kBFloat16, kPanel_##name = panel,              \
  kFamily_##name = int64_t(KernelFamily::family), kOutputs_##name = outputs,                     \
  kLanes_##name = lanes,
#include "cpu/kernels.inc"
#undef SPARSEKERN_KERNEL
};

enum UnwidenedTokens : int64_t {
#define SPARSEKERN_UNWIDENED(name, isa, most_tokens) kUnwidened_##name = most_tokens,
#include "cpu/unwidened.inc"
#undef SPARSEKERN_UNWIDENED
};

}  // namespace sparsekern

// Defines what the kernel `name` of cpu/unwidened.inc does with bfloat16.
#define SPARSEKERN_DEFINE_UNWIDENED(isa, name, ...)                                                \
  extern "C" void sparsekern_##name##_unwidened(const void* weight, const void* call,              \
                                                const sparsekern::Share* share) {                  \
    using namespace sparsekern::isa;                                                               \
    using Family = __VA_ARGS__;                                                                    \
    static_assert(Family::kMostTokens >= int64_t(sparsekern::kUnwidened_##name), "unwidened.inc"); \
    Family::run_share(*static_cast<const Family::Matrix*>(weight),                                 \
                      *static_cast<const sparsekern::CallOf<sparsekern::BFloat16>*>(call),         \
                      *share);                                                                     \
  }

// Defines the kernel `name` of the table in the namespace of an instruction set, by its family.
#define SPARSEKERN_DEFINE(isa, name, ...)                                                    \
  extern "C" void sparsekern_##name(const void* weight, const void* call,                    \
                                    const sparsekern::Share* share) {                        \
    using namespace sparsekern::isa;                                                         \
    using Family = __VA_ARGS__;                                                              \
    using Matrix = Family::Matrix;                                                           \
    static_assert(Family::kPanel == int64_t(sparsekern::kPanel_##name) &&                    \
                      int64_t(Family::kFamily) == int64_t(sparsekern::kFamily_##name) &&     \
                      Family::kTileOutputs == int64_t(sparsekern::kOutputs_##name) &&        \
                      Family::kTileLanes == int64_t(sparsekern::kLanes_##name),              \
                  "kernels.inc");                                                            \
    static_assert((sizeof(Matrix::Value) == 2) == bool(sparsekern::kBFloat16_##name),        \
                  "kernels.inc");                                                            \
    Family::run_share(*static_cast<const Matrix*>(weight),                                   \
                      *static_cast<const sparsekern::CallOf<Matrix::Value>*>(call), *share); \
  }
