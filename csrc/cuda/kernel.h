// The table of CUDA kernels, as the host sees it.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "core/view.h"

namespace sparsekern::cuda {

// The 16-bit numbers; every kernel has both.
enum class Number : int32_t { kBFloat16, kFloat16 };

// The product, its gradients, the index of the transpose that the gradient of inputs needs, and the
// convolution.
enum class Purpose : int32_t { kLinear, kGradInput, kGradValues, kColumns, kConv };

constexpr int64_t kAnyTokens = INT64_MAX;

// Launches a kernel; `argument` is what the header of its family says.
using Launcher = cudaError_t (*)(const void* argument, Number number, cudaStream_t stream);

struct KernelInfo {
  const char* name;
  Format format;
  Purpose purpose;
  int height;  // outputs of the product that it takes of a block at once; 1 of n:m
  int64_t min_tokens, max_tokens;  // for which it is chosen
  Launcher launch;

  bool of_few_tokens() const { return max_tokens != kAnyTokens; }
};

const KernelInfo* kernel_table(int* count);

// The first line that takes blocks of so many outputs of the product, or n:m and 1; null if none.
const KernelInfo* choose_kernel(Format format, Purpose purpose, int64_t outputs, int64_t tokens);

const KernelInfo* find_kernel(const char* name);

// Whether the current device takes the library's code.
cudaError_t probe();

}  // namespace sparsekern::cuda
