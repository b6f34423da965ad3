// From a call of a gradient to its kernel, and how the work is shared between threads. Free of
// torch.
#pragma once

#include "core/cpu_info.h"
#include "core/grad.h"
#include "cpu/threads.h"

namespace sparsekern {

struct GradKernelInfo {
  const char* name;
  GradOp op;
  Format format;
  Isa isa;
  int64_t rows;
  bool multiple;  // any multiple of `rows`, not just `rows`
  int64_t panel;
  GradKernel run;

  bool takes(GradOp asked, Format of, int64_t block_rows) const {
    return asked == op && of == format && (multiple ? block_rows % rows == 0 : block_rows == rows);
  }
};

// The kernel table of the gradients, most preferred first.
const GradKernelInfo* grad_kernel_table(int* count);

// First kernel of the table that takes the format and the height of its blocks within the ISA
// limit; or null.
const GradKernelInfo* choose_grad_kernel(GradOp op, Format format, int64_t block_rows);

// The kernel of that name; null if there is none.
const GradKernelInfo* find_grad_kernel(const char* name);

// The gradient of `tokens` rows, on at most `threads` threads.
void run_grad(const GradKernelInfo& kernel, const BlockMatrix& a, const GradCall& call,
              int64_t tokens, int64_t threads, ParallelFor parallel_for);
void run_grad(const GradKernelInfo& kernel, const NMMatrix& a, const GradCall& call, int64_t tokens,
              int64_t threads, ParallelFor parallel_for);

}  // namespace sparsekern
