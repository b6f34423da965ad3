// Kernels that serve bfloat16 without a widened copy. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// What the kernel, one of float32, has for as few tokens of bfloat16: weights are widened in
// registers, as they come from memory. Null if they must be widened before.
LinearKernel unwidened_kernel(const KernelInfo& kernel, const NMMatrixOf<BFloat16>& a,
                              int64_t tokens);
LinearKernel unwidened_kernel(const KernelInfo& kernel, const BlockMatrixOf<BFloat16>& a,
                              int64_t tokens);

}  // namespace sparsekern
