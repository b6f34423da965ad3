// The CPU implementations of sparsekern::block_conv2d and nm_conv2d, through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/common.h"
#include "bindings/conv_arguments.h"
#include "cpu/conv_dispatch.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const ConvArguments& args, ScalarType dtype) {
  const Tensor& x = args.x;
  STD_TORCH_CHECK(args.shape.size() == 4 && args.stride.size() == 2 && args.padding.size() == 2 &&
                      args.dilation.size() == 2 && args.groups > 0 && args.groups <= INT32_MAX,
                  args.op,
                  ": expected four sizes of the weight, two numbers for stride, padding and "
                  "dilation, and groups > 0");
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == dtype && x.dim() == 4 &&
                      x.size(1) == args.shape[1] * args.groups,
                  args.op, ": expected an input [batch, ", args.shape[1] * args.groups,
                  ", height, width] of ", dtype_name(dtype), " on the CPU, like the values",
                  found(x));
  if (!args.bias.has_value()) return;
  STD_TORCH_CHECK(args.bias->is_cpu() && args.bias->scalar_type() == dtype &&
                      args.bias->dim() == 1 && args.bias->size(0) == args.shape[0],
                  args.op, ": expected a ", dtype_name(dtype), " bias [", args.shape[0], "]",
                  found(*args.bias));
}

// The kernel of that name, or the first that serves the call.
template <class Matrix>
ConvChoice pick_kernel(const ConvArguments& args, Format format, int64_t block_rows,
                       const Matrix& a, const ConvCallOf<typename Matrix::Value>& call) {
  ConvChoice choice;
  if (args.kernel.empty()) {
    choice = choose_conv(format, block_rows, a.padded_in_features(), call, args.x.size(0));
    if (choice.product != nullptr) return choice;
  } else {
    choice.conv = find_conv_kernel(args.kernel.c_str());
  }
  const ConvKernelInfo* kernel = choice.conv;
  const std::string what = format_text(format, block_rows);
  STD_TORCH_CHECK(kernel != nullptr, args.op, ": no kernel named '", args.kernel, "' for ", what,
                  "; python -m sparsekern kernels lists them");
  STD_TORCH_CHECK(
      kernel->run != nullptr && isa_supported(kernel->isa) && kernel->takes(format, block_rows),
      args.op, ": kernel '", kernel->name, "' does not run on this CPU or does not take ", what);
  return choice;
}

template <class T>
ConvCallOf<T> call_of(const ConvArguments& args, const std::optional<Tensor>& bias,
                      const Tensor& y) {
  const Tensor& x = args.x;
  ConvCallOf<T> call{};
  call.x = static_cast<const T*>(x.data_ptr());
  call.x_image = x.stride(0);
  call.x_channel = x.stride(1);
  call.x_row = x.stride(2);
  call.x_column = x.stride(3);
  call.y = static_cast<T*>(y.data_ptr());
  call.bias = bias.has_value() ? static_cast<const T*>(bias->data_ptr()) : nullptr;
  call.activation = parse_conv_activation(args.activation, args.op);
  call.channels = args.shape[1];
  call.groups = args.groups;
  call.height = side_of(args, 2);
  call.width = side_of(args, 3);
  const int64_t pixels = call.height.out * call.width.out;
  call.y_image = args.shape[0] * pixels;
  return call;
}

template <class Matrix>
Tensor convolve(const ConvArguments& args, Format format, int64_t block_rows, const Matrix& a,
                ScalarType dtype) {
  using T = typename Matrix::Value;
  check(args, dtype);
  STD_TORCH_CHECK(groups_fit(a, args.groups), args.op, ": expected groups of whole bands of ",
                  a.band_outputs(), " outputs, got ", args.groups, " groups of ", a.out_features,
                  " outputs");
  std::optional<Tensor> bias = args.bias;
  if (bias.has_value() && !bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
  const bool channels_last = is_channels_last(args.x);
  const Side h = side_of(args, 2), w = side_of(args, 3);
  const int64_t sizes[] = {args.x.size(0), args.shape[0], h.out, w.out};
  const Tensor y =
      torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt,
                           channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                         : torch::headeronly::MemoryFormat::Contiguous);
  ConvCallOf<T> call = call_of<T>(args, bias, y);
  call.y_channel = channels_last ? 1 : h.out * w.out;
  call.y_pixel = channels_last ? a.out_features : 1;
  const int64_t images = args.x.size(0), threads = torch::stable::get_num_threads();
  const ConvChoice choice = pick_kernel(args, format, block_rows, a, call);
  if (choice.product != nullptr) {
    const int64_t row = h.in * w.in == 1 ? call.x_image : call.x_column;
    const CallOf<T> product{call.x, row, call.y, a.out_features, call.bias, call.activation};
    run_linear(*choice.product, a, product, images * h.out * w.out, threads, on_torch_threads);
    return y;
  }
  const ConvKernelInfo& kernel = *choice.conv;
  STD_TORCH_CHECK(offsets_fit(kernel, a, call), args.op,
                  ": expected images of which a few rows, with all channels of a group, are less "
                  "than 2^31 numbers, got ",
                  call.channels, " channels of ", call.width.in, " columns");
  run_conv(kernel, a, call, images, threads, on_torch_threads);
  return y;
}

Tensor block_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns,
                    const Tensor& offsets, std::optional<Tensor> bias, Numbers4 shape,
                    Numbers4 stride, Numbers4 padding, Numbers4 dilation, int64_t groups,
                    std::string activation, std::string kernel) {
  constexpr const char* kOp = "sparsekern::block_conv2d";
  const int64_t inputs = inputs_of(shape, kOp);
  const ConvArguments args{x,        bias,   shape,      stride, padding,
                           dilation, groups, activation, kernel, kOp};
  const auto run = [&](const auto& a) {
    return convolve(args, Format::kBlock, a.rows, a, values.scalar_type());
  };
  if (numbers_of(values, kOp) == Numbers::kFloat32) {
    return run(view_blocks<float>(values, columns, offsets, shape[0], inputs, kOp));
  }
  return run(view_blocks<BFloat16>(values, columns, offsets, shape[0], inputs, kOp));
}

Tensor nm_conv2d(const Tensor& x, const Tensor& values, const Tensor& positions,
                 std::optional<Tensor> bias, int64_t n, int64_t m, Numbers4 shape, Numbers4 stride,
                 Numbers4 padding, Numbers4 dilation, int64_t groups, std::string activation,
                 std::string kernel) {
  constexpr const char* kOp = "sparsekern::nm_conv2d";
  const int64_t inputs = inputs_of(shape, kOp);
  const ConvArguments args{x,        bias,   shape,      stride, padding,
                           dilation, groups, activation, kernel, kOp};
  const auto run = [&](const auto& a) {
    return convolve(args, Format::kNM, 1, a, values.scalar_type());
  };
  if (numbers_of(values, kOp) == Numbers::kFloat32) {
    return run(view_nm<float>(values, positions, n, m, shape[0], inputs, kOp));
  }
  return run(view_nm<BFloat16>(values, positions, n, m, shape[0], inputs, kOp));
}

}  // namespace
}  // namespace sparsekern

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("block_conv2d", TORCH_BOX(&sparsekern::block_conv2d));
  m.impl("nm_conv2d", TORCH_BOX(&sparsekern::nm_conv2d));
}
