#include "cpu/dispatch.h"

#include <type_traits>

#include "cpu/bfloat16.h"
#include "cpu/shares.h"
#include "cpu/table.h"
#include "cpu/unwidened.h"

#define SPARSEKERN_KERNEL(name, ...) \
  extern "C" void sparsekern_##name(const void* weight, const void* call, const sparsekern::Share*);
#include "cpu/kernels.inc"
#undef SPARSEKERN_KERNEL

namespace sparsekern {
namespace {

#define SPARSEKERN_KERNEL(name, format, numbers, isa, rows, multiple, min_tokens, panel, family, \
                          outputs, lanes, ...)                                                   \
  {                                                                                              \
      #name,      Format::format, Numbers::numbers,                                              \
      Isa::isa,   rows,           multiple,                                                      \
      min_tokens, panel,          KernelFamily::family,                                          \
      outputs,    lanes,          SPARSEKERN_SYMBOL_##isa(name),                                 \
      __VA_ARGS__},
constexpr KernelInfo kTable[] = {
#include "cpu/kernels.inc"
};
#undef SPARSEKERN_KERNEL
constexpr int kTableSize = sizeof(kTable) / sizeof(kTable[0]);

}  // namespace

const KernelInfo* kernel_table(int* count) {
  *count = kTableSize;
  return kTable;
}

const KernelInfo* choose_kernel(Format format, Numbers values, int64_t block_rows, int64_t tokens) {
  for (const KernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && has_cores(kernel.cores) &&
        kernel.takes(format, values, block_rows) && tokens >= kernel.min_tokens) {
      return &kernel;
    }
  }
  return nullptr;
}

const KernelInfo* find_kernel(const char* name) { return find_named(kTable, name); }

template <class Matrix>
void run_linear(const KernelInfo& kernel, const Matrix& a,
                const CallOf<typename Matrix::Value>& call, int64_t tokens, int64_t threads,
                ParallelFor parallel_for) {
  using Value = typename Matrix::Value;
  LinearKernel run = kernel.run;
  if constexpr (std::is_same_v<Value, BFloat16>) {
    if (kernel.numbers == Numbers::kFloat32) {
      run = unwidened_kernel(kernel, a, tokens);
      if (!run) return run_widened(kernel, a, call, tokens, threads, parallel_for);
    }
  }
  for_each_share(kernel, a, tokens, threads, parallel_for, [&](Share share) {
    share.scratch_floats =
        kernel_scratch_floats(kernel, a.padded_in_features(), share.token_end - share.token_begin,
                              share.row_end - share.row_begin);
    share.scratch = thread_scratch(share.scratch_floats);
    run(&a, &call, &share);
  });
}

#define SPARSEKERN_INSTANTIATE(Matrix)                                                     \
  template void run_linear(const KernelInfo&, const Matrix&, const CallOf<Matrix::Value>&, \
                           int64_t, int64_t, ParallelFor);
SPARSEKERN_INSTANTIATE(BlockMatrixOf<float>)
SPARSEKERN_INSTANTIATE(BlockMatrixOf<BFloat16>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<float>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<BFloat16>)

}  // namespace sparsekern
