// What the ops of convolutions on all devices take from torch: the arguments of their schema.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/common.h"
#include "core/conv.h"

namespace sparsekern {

using Numbers4 = std::vector<int64_t>;

// The arguments of the ops behind the weight, as the schema has them.
struct ConvArguments {
  const torch::stable::Tensor& x;
  const std::optional<torch::stable::Tensor>& bias;
  const Numbers4 &shape, &stride, &padding, &dilation;  // shape: [outputs, channels, rows, columns]
  int64_t groups;
  const std::string &activation, &kernel;
  const char* op;
};

inline Activation parse_conv_activation(const std::string& name, const char* op) {
  if (name == "relu6") return Activation::kRelu6;
  if (name == "hardswish") return Activation::kHardswish;
  return parse_activation(name, op, ", relu6, hardswish");
}

// The memory format of the output: by the order of the strides, as layout_of of
// sparsekern/ops_conv.py.
inline bool is_channels_last(const torch::stable::Tensor& x) {
  int64_t least = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    const int64_t size = x.size(dim), stride = x.stride(dim);
    if (size == 0 || stride < least || (dim == 0 && least == x.stride(1))) return false;
    least = stride * size;
  }
  return true;
}

inline Side side_of(const ConvArguments& args, int64_t dim) {
  constexpr int64_t kMost = INT32_MAX;
  const int64_t at = dim - 2;
  Side side{args.x.size(dim), 0, args.shape[dim], args.stride[at], args.padding[at],
            args.dilation[at]};
  const auto fits = [](int64_t number, int64_t least) {
    return number >= least && number <= kMost;
  };
  STD_TORCH_CHECK(fits(side.kernel, 1) && fits(side.stride, 1) && fits(side.padding, 0) &&
                      fits(side.dilation, 1),
                  args.op, ": expected a kernel, stride and dilation > 0 and a padding >= 0, got ",
                  side.kernel, ", ", side.stride, ", ", side.dilation, " and ", side.padding);
  const int64_t reach = (side.kernel - 1) * side.dilation + 1, padded = side.in + 2 * side.padding;
  STD_TORCH_CHECK(side.in <= kMost && padded <= kMost, args.op,
                  ": expected sides of 32 bits with the padding, got ", padded, " pixels");
  STD_TORCH_CHECK((side.in > 0 || args.x.size(0) == 0) && padded >= reach, args.op,
                  ": expected an input that the kernel fits into, ", reach,
                  " pixels or more with the padding, got ", padded);
  side.out = (padded - reach) / side.stride + 1;
  return side;
}

// Of the weight as a matrix.
inline int64_t inputs_of(const Numbers4& shape, const char* op) {
  STD_TORCH_CHECK(shape.size() == 4, op, ": expected four sizes of the weight, got ", shape.size());
  int64_t inputs = 1;
  for (int i = 1; i < 4; ++i) {
    STD_TORCH_CHECK(shape[i] > 0 && inputs <= INT32_MAX / shape[i], op,
                    ": expected sizes of the weight > 0 that fit 32 bits");
    inputs *= shape[i];
  }
  return inputs;
}

}  // namespace sparsekern
