// bfloat16 weights, inputs and outputs on the float32 kernels. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// y = activation(x W^T + bias) for `tokens` rows of x, summed in float32 and rounded once. `a` is
// the weight without its values, which are `values`.
template <class Matrix>
void run_linear(const KernelInfo& kernel, const Matrix& a, const BFloat16* values,
                const CallOf<BFloat16>& call, int64_t tokens, int64_t threads,
                ParallelFor parallel_for);

}  // namespace sparsekern
