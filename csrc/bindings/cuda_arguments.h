// What the CUDA ops take from torch: views of tensors that kernels may trust, and its stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "cuda/call.h"
#include "cuda/decode.h"
#include "cuda/kernel.h"
#include "cuda/nm_product.h"

namespace sparsekern::cuda {

// What a message says was found: ", got Half [4, 3] on the CPU".
std::string found(const torch::stable::Tensor& tensor);

// The stream that torch works on where the tensor is.
cudaStream_t current_stream(const torch::stable::Tensor& tensor, const char* op);

// The GPU of that number, as CUDA tells.
const Gpu& gpu_of(int32_t device, const char* op);

Number number_of(const torch::stable::Tensor& values, const char* op);

// Places of tensors that were checked.
inline uint16_t* bits_of(const torch::stable::Tensor& tensor) {
  return static_cast<uint16_t*>(tensor.data_ptr());
}
inline int32_t* int32s(const torch::stable::Tensor& tensor) {
  return static_cast<int32_t*>(tensor.data_ptr());
}

// The weight that the tensors hold. The index values were verified when it was packed or loaded;
// shapes are checked here, at each call, because a wrong one would read outside a tensor.
Blocks view_blocks(const torch::stable::Tensor& values, const torch::stable::Tensor& columns,
                   const torch::stable::Tensor& offsets, int64_t out_features, int64_t in_features,
                   const char* op);
// A product of which the call is still to come.
NMProduct view_two_of_four(const torch::stable::Tensor& values,
                           const torch::stable::Tensor& positions, int64_t out_features,
                           int64_t in_features, const char* op);

// Rows of the last dimension as kernels read them: each begins at a multiple of 16 bytes, and they
// are a multiple of 8 numbers long.
struct PaddedRows {
  torch::stable::Tensor memory;
  int64_t stride;   // numbers from one row to the next
  int64_t numbers;  // of a row, with the zeros behind its own
  int64_t count;
};

// Checks for the dtype and the device of the values, and `columns` in a row; copies rows that do
// not lie so. `name`: as errors call it, "an input".
PaddedRows padded_rows(const torch::stable::Tensor& x, const torch::stable::Tensor& values,
                       int64_t columns, const char* name, const char* op);

// Images as kernels read them: channels side by side, each pixel at a multiple of 16 bytes, and
// fewer than 2^31 numbers from an image's first one to its last.
struct PixelRows {
  torch::stable::Tensor memory;
  int64_t image, row, pixel;  // numbers from one to the next
};

// Checks for [batch, channels, height, width] of the dtype and the device of the values; copies
// images that do not lie so.
PixelRows pixel_rows(const torch::stable::Tensor& x, const torch::stable::Tensor& values,
                     int64_t channels, const char* op);

}  // namespace sparsekern::cuda
