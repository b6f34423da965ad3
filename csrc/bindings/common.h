// What the ops of all devices take from torch: texts for messages, activations, and how rows lie.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

#include "core/view.h"

namespace sparsekern {

// "Half [4, 3] not contiguous".
inline std::string tensor_text(const torch::stable::Tensor& tensor) {
  std::string text = std::string(torch::headeronly::toString(tensor.scalar_type())) + " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
  }
  text += "]";
  return tensor.is_contiguous() ? text : text + " not contiguous";
}

// `others`: those that the op knows besides.
inline Activation parse_activation(const std::string& name, const char* op,
                                   const char* others = "") {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu") return Activation::kSilu;
  STD_TORCH_CHECK(false, op, ": expected an activation of none, relu, gelu, silu", others,
                  ", got '", name, "'");
}

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
