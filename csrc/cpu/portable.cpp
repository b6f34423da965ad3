// The portable kernels: no intrinsics, no region; whatever the compiler's base target offers.
#include "cpu/isa/portable.h"

#include <stddef.h>
#include <stdint.h>

#include "core/view.h"
#include "cpu/isa/region.h"

namespace sparsekern::portable {
namespace {
// clang-format off: each builds on the ones before it
#include "cpu/epilogue.inl.h"
#include "cpu/pack.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/outputs.inl.h"
#include "cpu/tokens.inl.h"
// clang-format on
}  // namespace
}  // namespace sparsekern::portable

#define SPARSEKERN_DEFINE(name, ...)                                    \
  extern "C" void sparsekern_##name(const sparsekern::BlockMatrix* a,   \
                                    const sparsekern::LinearCall* call, \
                                    const sparsekern::Share* share) {   \
    using namespace sparsekern::portable;                               \
    run_share<__VA_ARGS__>(*a, *call, *share);                          \
  }

SPARSEKERN_DEFINE(outputs_r16_portable, OutputsFamily<Vec4, Vec4, 2, 4>)
SPARSEKERN_DEFINE(outputs_r8_portable, OutputsFamily<Vec4, Vec4, 2, 4>)
SPARSEKERN_DEFINE(outputs_r4_portable, OutputsFamily<Vec4, Vec4, 1, 4>)
SPARSEKERN_DEFINE(tokens_r8_portable, TokensFamily<Vec4, 4, 2>)
SPARSEKERN_DEFINE(tokens_r4_portable, TokensFamily<Vec4, 4, 2>)
