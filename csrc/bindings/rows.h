// How the rows of the last dimension of a tensor lie in memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace sparsekern {

// Numbers from one row of the last dimension to the next, if one number says it for all of them and
// rows are contiguous; else -1.
inline int64_t row_stride(const torch::stable::Tensor& x) {
  const int64_t last = x.dim() - 1;
  if (x.size(last) > 1 && x.stride(last) != 1) return -1;
  int64_t stride = x.size(last), rows = 1;
  for (int64_t i = last - 1; i >= 0; --i) {
    if (x.size(i) == 1) continue;
    if (rows == 1) stride = x.stride(i);
    if (x.stride(i) != stride * rows) return -1;
    rows *= x.size(i);
  }
  return stride < x.size(last) ? -1 : stride;
}

inline int64_t row_count(const torch::stable::Tensor& x) {
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) count *= x.size(i);
  return count;
}

}  // namespace sparsekern
