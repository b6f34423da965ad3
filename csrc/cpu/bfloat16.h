// bfloat16 weights, inputs and outputs on the float32 kernels. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// y = activation(x W^T + bias) for `tokens` rows of x, by a kernel of float32: summed as such, and
// rounded once.
template <template <class> class MatrixOf>
void run_widened(const KernelInfo& kernel, const MatrixOf<BFloat16>& a,
                 const CallOf<BFloat16>& call, int64_t tokens, int64_t threads,
                 ParallelFor parallel_for);

}  // namespace sparsekern
