#include "cpu/unwidened.h"

#include "cpu/table.h"

#define SPARSEKERN_UNWIDENED(name, isa, most_tokens)                                  \
  extern "C" void sparsekern_##name##_unwidened(const void* weight, const void* call, \
                                                const sparsekern::Share*);
#include "cpu/unwidened.inc"
#undef SPARSEKERN_UNWIDENED

namespace sparsekern {
namespace {

struct Line {
  const char* name;  // of the kernel of float32
  int64_t most_tokens;
  LinearKernel run;
};

#define SPARSEKERN_UNWIDENED(name, isa, most_tokens) \
  {#name, most_tokens, SPARSEKERN_SYMBOL_##isa(name##_unwidened)},
constexpr Line kTable[] = {
#include "cpu/unwidened.inc"
};
#undef SPARSEKERN_UNWIDENED

LinearKernel find(const KernelInfo& kernel, int64_t tokens) {
  const Line* line = find_named(kTable, kernel.name);
  return line != nullptr && tokens <= line->most_tokens ? line->run : nullptr;
}

}  // namespace

LinearKernel unwidened_kernel(const KernelInfo& kernel, const NMMatrixOf<BFloat16>& a,
                              int64_t tokens) {
  const bool picked = a.m == 4 ? a.n <= 2 : (a.m == 8 || a.m == 16) && a.n * 2 == a.m;
  return picked ? find(kernel, tokens) : nullptr;
}

LinearKernel unwidened_kernel(const KernelInfo& kernel, const BlockMatrixOf<BFloat16>& a,
                              int64_t tokens) {
  // Kernels of rows take single weights; the others keep the sums of a whole block row at once.
  const bool fits = kernel.family == KernelFamily::kSingle ? a.rows * a.cols == 1
                                                           : a.rows * kMostFewTokens <= kMostCells;
  return fits ? find(kernel, tokens) : nullptr;
}

}  // namespace sparsekern
