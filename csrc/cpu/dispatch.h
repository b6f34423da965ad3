// From a call to kernels: which one, and how the work is shared between threads. Free of torch.
#pragma once

#include "core/cpu_info.h"
#include "core/view.h"
#include "cpu/threads.h"

namespace sparsekern {

struct KernelInfo {
  const char* name;
  Format format;
  Numbers numbers;
  Isa isa;
  int64_t rows;
  bool multiple;  // any multiple of `rows`, not just `rows`
  int64_t min_tokens;
  int64_t panel;
  KernelFamily family;
  int64_t outputs;  // held at once, for `panel` tokens
  int64_t lanes;    // of its vectors
  LinearKernel run;
  Cores cores = Cores::kAny;

  bool takes(Format of, Numbers values, int64_t block_rows) const {
    const bool has_numbers = numbers == Numbers::kFloat32 || numbers == values;
    return of == format && has_numbers && (multiple ? block_rows % rows == 0 : block_rows == rows);
  }
};

// The kernel table, most preferred first.
const KernelInfo* kernel_table(int* count);

// First kernel of the table that takes the format, the numbers it holds, the height of its blocks,
// the number of tokens, the ISA limit and the cores; or null.
const KernelInfo* choose_kernel(Format format, Numbers values, int64_t block_rows, int64_t tokens);

// The kernel of that name; null if there is none.
const KernelInfo* find_kernel(const char* name);

// y = activation(x W^T + bias) for `tokens` rows of x, on at most `threads` threads. The kernel
// takes the matrix, which is one of those of core/view.h.
template <class Matrix>
void run_linear(const KernelInfo& kernel, const Matrix& a,
                const CallOf<typename Matrix::Value>& call, int64_t tokens, int64_t threads,
                ParallelFor parallel_for);

}  // namespace sparsekern
