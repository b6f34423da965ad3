#include "cpu/dispatch.h"

#include "cpu/shares.h"
#include "cpu/table.h"

#define SPARSEKERN_KERNEL(name, ...)                                                   \
  extern "C" void sparsekern_##name(const void* weight, const sparsekern::LinearCall*, \
                                    const sparsekern::Share*);
#include "cpu/kernels.inc"
#undef SPARSEKERN_KERNEL

namespace sparsekern {
namespace {

#define SPARSEKERN_KERNEL(name, format, isa, rows, multiple, min_tokens, panel, family, outputs, \
                          lanes)                                                                 \
  {#name,                                                                                        \
   Format::format,                                                                               \
   Isa::isa,                                                                                     \
   rows,                                                                                         \
   multiple,                                                                                     \
   min_tokens,                                                                                   \
   panel,                                                                                        \
   KernelFamily::family,                                                                         \
   outputs,                                                                                      \
   lanes,                                                                                        \
   SPARSEKERN_SYMBOL_##isa(name)},
constexpr KernelInfo kTable[] = {
#include "cpu/kernels.inc"
};
#undef SPARSEKERN_KERNEL
constexpr int kTableSize = sizeof(kTable) / sizeof(kTable[0]);

template <class Matrix>
void run_float32(const KernelInfo& kernel, const Matrix& a, const LinearCall& call, int64_t tokens,
                 int64_t threads, ParallelFor parallel_for) {
  for_each_share(kernel, a, tokens, threads, parallel_for, [&](Share share) {
    share.scratch_floats =
        kernel_scratch_floats(kernel, a.padded_in_features(), share.token_end - share.token_begin,
                              share.row_end - share.row_begin);
    share.scratch = thread_scratch(share.scratch_floats);
    kernel.run(&a, &call, &share);
  });
}

}  // namespace

const KernelInfo* kernel_table(int* count) {
  *count = kTableSize;
  return kTable;
}

const KernelInfo* choose_kernel(Format format, int64_t block_rows, int64_t tokens) {
  for (const KernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && kernel.takes(format, block_rows) &&
        tokens >= kernel.min_tokens) {
      return &kernel;
    }
  }
  return nullptr;
}

const KernelInfo* find_kernel(const char* name) { return find_named(kTable, name); }

void run_linear(const KernelInfo& kernel, const BlockMatrix& a, const LinearCall& call,
                int64_t tokens, int64_t threads, ParallelFor parallel_for) {
  run_float32(kernel, a, call, tokens, threads, parallel_for);
}

void run_linear(const KernelInfo& kernel, const NMMatrix& a, const LinearCall& call, int64_t tokens,
                int64_t threads, ParallelFor parallel_for) {
  run_float32(kernel, a, call, tokens, threads, parallel_for);
}

}  // namespace sparsekern
