// What the ops take from torch: views of tensors that kernels may trust, and torch's threads.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "core/view.h"

namespace sparsekern {

// What a message says was found: "Double [4, 3] not contiguous".
std::string found(const torch::stable::Tensor& tensor);

// The weight that the tensors hold, for the op that errors name. The index values were verified
// when it was packed or loaded; shapes are checked here, at each call, because a wrong one would
// read outside a tensor.
BlockMatrix view_blocks(const torch::stable::Tensor& values, const torch::stable::Tensor& columns,
                        const torch::stable::Tensor& offsets, int64_t out_features,
                        int64_t in_features, const char* op);
NMMatrix view_nm(const torch::stable::Tensor& values, const torch::stable::Tensor& positions,
                 int64_t n, int64_t m, int64_t out_features, int64_t in_features, const char* op);

// Rows of the last dimension, in memory that one stride describes.
struct Rows {
  torch::stable::Tensor memory;
  const float* data;
  int64_t stride;  // floats from one row to the next
  int64_t count;
};

// Checks for float32 on the CPU and `columns` in a row; copies what one stride does not describe.
// `name`: as errors call it, "input" or "gradient".
Rows view_rows(const torch::stable::Tensor& x, int64_t columns, const char* name, const char* op);

// A ParallelFor on torch's own threads.
void on_torch_threads(int64_t parts, void (*body)(int64_t, void*), void* context);

}  // namespace sparsekern
