// The CUDA implementations of sparsekern::block_linear, nm_linear, the gradients of blocks and
// block_conv2d, through torch's stable ABI. The library is built without a torch that knows CUDA
// and is loaded beside one that does.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "bindings/common.h"
#include "bindings/conv_arguments.h"
#include "bindings/cuda_arguments.h"
#include "cuda/block_product.h"
#include "cuda/columns_product.h"
#include "cuda/conv_product.h"
#include "cuda/decode.h"
#include "cuda/grad_product.h"
#include "cuda/kernel.h"
#include "cuda/nm_product.h"

namespace sparsekern::cuda {
namespace {

using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

const KernelInfo& pick(const std::string& name, Format format, Purpose purpose, int64_t outputs,
                       int64_t tokens, const char* op) {
  const KernelInfo* kernel =
      name.empty() ? choose_kernel(format, purpose, outputs, tokens) : find_kernel(name.c_str());
  STD_TORCH_CHECK(kernel != nullptr, op, ": no CUDA kernel ",
                  name.empty() ? "" : "named '" + name + "' ", "for blocks of ", outputs,
                  " outputs; python -m sparsekern kernels lists them");
  STD_TORCH_CHECK(
      kernel->format == format && kernel->purpose == purpose && outputs % kernel->height == 0, op,
      ": kernel '", kernel->name, "' takes multiples of ", kernel->height,
      " outputs of a block, or makes another product, got blocks of ", outputs,
      "; python -m sparsekern kernels lists them");
  return *kernel;
}

void run(const KernelInfo& kernel, const void* argument, Number number, const Tensor& on,
         const char* op) {
  const cudaError_t error = kernel.launch(argument, number, current_stream(on, op));
  STD_TORCH_CHECK(error == cudaSuccess, op, ": kernel '", kernel.name,
                  "' was not launched: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

// The product that writes to `y`; `bias` is kept alive by whoever calls.
Call call_of(const PaddedRows& x, Tensor& y, const Tensor* bias, int64_t outputs,
             Activation activation) {
  const auto* bias_at = bias == nullptr ? nullptr : bits_of(*bias);
  return {{bits_of(x.memory)}, x.stride, {bits_of(y)}, {bias_at}, x.count,
          x.numbers,           outputs,  activation,   {}};
}

std::optional<Tensor> checked_bias(const std::optional<Tensor>& bias, const Tensor& values,
                                   int64_t outputs, const char* op) {
  if (!bias.has_value()) return bias;
  STD_TORCH_CHECK(bias->is_cuda() && bias->get_device() == values.get_device() &&
                      bias->scalar_type() == values.scalar_type() && bias->dim() == 1 &&
                      bias->size(0) == outputs,
                  op, ": expected a bias [", outputs, "] of the weight's dtype and device",
                  found(*bias));
  return bias->is_contiguous() ? bias : torch::stable::contiguous(*bias);
}

Tensor new_output(const Tensor& x, int64_t outputs) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outputs;
  return torch::stable::new_empty(x, shape);
}

// Has several thread blocks make a strip, where the strips of few tokens are too few to keep the
// GPU's memory busy. What comes back is what they share, to be kept until the kernel is launched.
std::optional<Tensor> share_strips(Call& call, const KernelInfo& kernel, const Strips& strips,
                                   const Tensor& values, const char* op) {
  if (!kernel.of_few_tokens()) return std::nullopt;
  const int parts = parts_of_strips(strips, gpu_of(values.get_device(), op));
  if (parts == 1) return std::nullopt;
  const std::vector<int64_t> sizes{parts, call.tokens, strips.outputs};
  Tensor partials = torch::stable::new_empty(values, sizes, torch::headeronly::ScalarType::Float);
  call.split = {{static_cast<float*>(partials.data_ptr())}, strips.outputs, parts};
  return partials;
}

Tensor block_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                    const Tensor& offsets, std::optional<Tensor> bias, int64_t out_features,
                    int64_t in_features, std::string activation, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear";
  const Number number = number_of(values, kOp);
  const Blocks weight = view_blocks(values, columns, offsets, out_features, in_features, kOp);
  const DeviceGuard guard(values.get_device());
  const PaddedRows rows = padded_rows(x, values, in_features, "an input", kOp);
  const std::optional<Tensor> added = checked_bias(bias, values, out_features, kOp);
  Tensor y = new_output(x, out_features);
  if (rows.count == 0) return y;
  const KernelInfo& kernel =
      pick(kernel_name, Format::kBlock, Purpose::kLinear, weight.rows, rows.count, kOp);
  const Call call =
      call_of(rows, y, added ? &*added : nullptr, out_features, parse_activation(activation, kOp));
  auto product = block_product<false>(call, weight, {}, kernel.height);
  const Strips strips = strips_of(product, values.size(0), kernel.height);
  const std::optional<Tensor> partials = share_strips(product.call, kernel, strips, values, kOp);
  run(kernel, &product, number, values, kOp);
  return y;
}

Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& positions,
                 std::optional<Tensor> bias, int64_t n, int64_t m, int64_t out_features,
                 int64_t in_features, std::string activation, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::nm_linear";
  STD_TORCH_CHECK(n == 2 && m == 4, kOp, ": expected 2:4, the pattern of sparse tensor cores, got ",
                  n, ":", m);
  const Number number = number_of(values, kOp);
  const NMProduct weight = view_two_of_four(values, positions, out_features, in_features, kOp);
  const DeviceGuard guard(values.get_device());
  const PaddedRows rows = padded_rows(x, values, in_features, "an input", kOp);
  const std::optional<Tensor> added = checked_bias(bias, values, out_features, kOp);
  Tensor y = new_output(x, out_features);
  if (rows.count == 0) return y;
  const KernelInfo& kernel = pick(kernel_name, Format::kNM, Purpose::kLinear, 1, rows.count, kOp);
  NMProduct product = weight;
  product.call =
      call_of(rows, y, added ? &*added : nullptr, out_features, parse_activation(activation, kOp));
  const std::optional<Tensor> partials =
      share_strips(product.call, kernel, strips_of(product), values, kOp);
  run(kernel, &product, number, values, kOp);
  return y;
}

Tensor block_grad_input(const Tensor& grad, const Tensor& values, const Tensor& columns,
                        const Tensor& offsets, int64_t out_features, int64_t in_features,
                        std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear_grad_input";
  const Number number = number_of(values, kOp);
  const Blocks weight = view_blocks(values, columns, offsets, out_features, in_features, kOp);
  const DeviceGuard guard(values.get_device());
  const PaddedRows rows = padded_rows(grad, values, out_features, "a gradient", kOp);
  Tensor result = new_output(grad, in_features);
  if (rows.count == 0) return result;
  const int64_t places = int64_t{weight.block_rows} * weight.block_columns;
  STD_TORCH_CHECK(places < INT32_MAX, kOp, ": expected fewer than 2^31 places for blocks, got ",
                  weight.block_rows, " x ", weight.block_columns);
  const std::vector<int64_t> of_columns{weight.block_columns}, of_places{places};
  Tensor counts = torch::stable::new_empty(offsets, of_columns);
  Tensor block_rows = torch::stable::new_empty(offsets, of_places);
  Tensor blocks = torch::stable::new_empty(offsets, of_places);
  const ColumnsProduct index{weight, {int32s(counts)}, {int32s(block_rows)}, {int32s(blocks)}};
  run(pick("", Format::kBlock, Purpose::kColumns, 1, 1, kOp), &index, number, values, kOp);
  const KernelInfo& kernel =
      pick(kernel_name, Format::kBlock, Purpose::kGradInput, weight.cols, rows.count, kOp);
  const Call call = call_of(rows, result, nullptr, in_features, Activation::kNone);
  const auto product = block_product<true>(
      call, weight, {{int32s(counts)}, {int32s(block_rows)}, {int32s(blocks)}}, kernel.height);
  run(kernel, &product, number, values, kOp);
  return result;
}

Tensor block_grad_values(const Tensor& grad, const Tensor& x, const Tensor& values,
                         const Tensor& columns, const Tensor& offsets, int64_t out_features,
                         int64_t in_features, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear_grad_values";
  const Number number = number_of(values, kOp);
  const Blocks weight = view_blocks(values, columns, offsets, out_features, in_features, kOp);
  const DeviceGuard guard(values.get_device());
  const PaddedRows outputs = padded_rows(grad, values, out_features, "a gradient", kOp);
  const PaddedRows inputs = padded_rows(x, values, in_features, "an input", kOp);
  STD_TORCH_CHECK(outputs.count == inputs.count, kOp, ": expected as many rows in the gradient as ",
                  "in the input, got ", outputs.count, " and ", inputs.count);
  Tensor result = torch::stable::empty_like(values);
  if (values.numel() == 0) return result;
  const KernelInfo& kernel =
      pick(kernel_name, Format::kBlock, Purpose::kGradValues,
           std::gcd(int64_t{weight.rows}, int64_t{weight.cols}), max64(1, inputs.count), kOp);
  const GradProduct product{{{bits_of(inputs.memory)}, inputs.stride, inputs.numbers},
                            {{bits_of(outputs.memory)}, outputs.stride, outputs.numbers},
                            inputs.count,
                            weight,
                            int(values.size(0)),
                            {bits_of(result)}};
  run(kernel, &product, number, values, kOp);
  return result;
}

ImageSide image_side(const ConvArguments& args, int64_t dim) {
  const Side side = side_of(args, dim);
  STD_TORCH_CHECK(side.in + 2 * side.padding < int64_t{1} << 30, args.op,
                  ": expected fewer than 2^30 pixels with the padding, got ",
                  side.in + 2 * side.padding);
  return {int(side.in), int(side.out), int(side.stride), int(side.padding), int(side.dilation)};
}

Tensor new_images(const Tensor& x, const std::vector<int64_t>& sizes, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor block_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns,
                    const Tensor& offsets, std::optional<Tensor> bias, Numbers4 shape,
                    Numbers4 stride, Numbers4 padding, Numbers4 dilation, int64_t groups,
                    std::string activation, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_conv2d";
  const int64_t inputs = inputs_of(shape, kOp);
  const ConvArguments args{x,        bias,   shape,      stride,      padding,
                           dilation, groups, activation, kernel_name, kOp};
  STD_TORCH_CHECK(groups == 1 && shape[1] % 16 == 0 && stride.size() == 2 && padding.size() == 2 &&
                      dilation.size() == 2,
                  kOp, ": expected one group of a multiple of 16 channels, and two numbers for ",
                  "stride, padding and dilation, got ", groups, " groups of ", shape[1],
                  " channels");
  const Number number = number_of(values, kOp);
  const Blocks weight = view_blocks(values, columns, offsets, shape[0], inputs, kOp);
  const DeviceGuard guard(values.get_device());
  const PixelRows pixels = pixel_rows(x, values, shape[1], kOp);
  const std::optional<Tensor> added = checked_bias(bias, values, shape[0], kOp);
  const ImageSide height = image_side(args, 2), width = image_side(args, 3);
  const std::vector<int64_t> sizes{x.size(0), shape[0], height.out, width.out};
  Tensor y = new_images(x, sizes, /*channels_last=*/true);
  const int64_t count = x.size(0) * height.out * width.out;
  if (count > 0) {
    const KernelInfo& kernel =
        pick(kernel_name, Format::kBlock, Purpose::kConv, weight.rows, count, kOp);
    const Call call{{bits_of(pixels.memory)},
                    pixels.pixel,
                    {bits_of(y)},
                    {added ? bits_of(*added) : nullptr},
                    count,
                    inputs,
                    shape[0],
                    parse_conv_activation(activation, kOp),
                    {}};
    const Images images{pixels.image,
                        int(pixels.row),
                        int(pixels.pixel),
                        height,
                        width,
                        Divisor(uint32_t(shape[1])),
                        Divisor(uint32_t(shape[3]))};
    const ConvProduct product{block_product<false>(call, weight, {}, kernel.height), images};
    run(kernel, &product, number, values, kOp);
  }
  if (is_channels_last(x)) return y;
  Tensor contiguous = new_images(x, sizes, /*channels_last=*/false);
  return torch::stable::copy_(contiguous, y);
}

}  // namespace
}  // namespace sparsekern::cuda

extern "C" {

// What launches on the current device will meet: null, or the name of CUDA's error, such as that of
// a driver older than the runtime in this library, or of a GPU that it has no code for.
__attribute__((visibility("default"))) const char* sparsekern_cuda_refusal() {
  const cudaError_t error = sparsekern::cuda::probe();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // extern "C"

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("block_linear", TORCH_BOX(&sparsekern::cuda::block_linear));
  m.impl("nm_linear", TORCH_BOX(&sparsekern::cuda::nm_linear));
  m.impl("block_conv2d", TORCH_BOX(&sparsekern::cuda::block_conv2d));
  m.impl("block_linear_grad_input", TORCH_BOX(&sparsekern::cuda::block_grad_input));
  m.impl("block_linear_grad_values", TORCH_BOX(&sparsekern::cuda::block_grad_values));
}
