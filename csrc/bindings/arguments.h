// What the ops take from torch: views of tensors that kernels may trust, and torch's threads.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "core/view.h"

namespace sparsekern {

// What a message says was found: "Double [4, 3] not contiguous".
std::string found(const torch::stable::Tensor& tensor);

// Of the dtypes that kernels have: float32 and bfloat16.
const char* dtype_name(torch::headeronly::ScalarType dtype);

// What messages call a format with blocks of so many rows.
std::string format_text(Format format, int64_t block_rows);

// The numbers of a dtype that kernels have; an error for any other.
Numbers numbers_of(const torch::stable::Tensor& values, const char* op);

// The weight that the tensors hold, whose values are T. `op`: as errors name it. The index values
// were verified when it was packed or loaded; shapes are checked here, at each call, because a
// wrong one would read outside a tensor.
template <class T>
BlockMatrixOf<T> view_blocks(const torch::stable::Tensor& values,
                             const torch::stable::Tensor& columns,
                             const torch::stable::Tensor& offsets, int64_t out_features,
                             int64_t in_features, const char* op);
template <class T>
NMMatrixOf<T> view_nm(const torch::stable::Tensor& values, const torch::stable::Tensor& positions,
                      int64_t n, int64_t m, int64_t out_features, int64_t in_features,
                      const char* op);

// Rows of the last dimension, in memory that one stride describes.
struct Rows {
  torch::stable::Tensor memory;
  int64_t stride;  // elements from one row to the next
  int64_t count;

  template <class T>
  const T* data() const {
    return static_cast<const T*>(memory.data_ptr());
  }
};

// Checks for the dtype, the CPU and `columns` in a row; copies what one stride does not describe.
// `name`: as errors call it, "an input".
Rows view_rows(const torch::stable::Tensor& x, torch::headeronly::ScalarType dtype, int64_t columns,
               const char* name, const char* op);

// A ParallelFor on torch's own threads.
void on_torch_threads(int64_t parts, void (*body)(int64_t, void*), void* context);

}  // namespace sparsekern
