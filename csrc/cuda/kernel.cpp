#include "cuda/kernel.h"

#include <string.h>

namespace sparsekern::cuda {

#define SPARSEKERN_CUDA_KERNEL(name, format, purpose, height, min_tokens, max_tokens) \
  cudaError_t name(const void* argument, Number number, cudaStream_t stream);
#include "cuda/kernels.inc"
#undef SPARSEKERN_CUDA_KERNEL

const KernelInfo* kernel_table(int* count) {
  static const KernelInfo table[] = {
#define SPARSEKERN_CUDA_KERNEL(name, format, purpose, height, min_tokens, max_tokens) \
  {#name, Format::format, Purpose::purpose, height, min_tokens, max_tokens, name},
#include "cuda/kernels.inc"
#undef SPARSEKERN_CUDA_KERNEL
  };
  *count = sizeof table / sizeof table[0];
  return table;
}

const KernelInfo* choose_kernel(Format format, Purpose purpose, int64_t outputs, int64_t tokens) {
  int count;
  const KernelInfo* table = kernel_table(&count);
  for (const KernelInfo* line = table; line < table + count; ++line) {
    const bool fits = line->format == format && line->purpose == purpose &&
                      outputs % line->height == 0 && tokens >= line->min_tokens &&
                      tokens <= line->max_tokens;
    if (fits) return line;
  }
  return nullptr;
}

const KernelInfo* find_kernel(const char* name) {
  int count;
  const KernelInfo* table = kernel_table(&count);
  for (const KernelInfo* line = table; line < table + count; ++line) {
    if (strcmp(line->name, name) == 0) return line;
  }
  return nullptr;
}

}  // namespace sparsekern::cuda
