// The CPU implementations of sparsekern::block_linear and nm_linear, through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/bfloat16.h"
#include "cpu/dispatch.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What a message says was found: "Double [4, 3] not contiguous".
std::string found(const Tensor& tensor) {
  std::string text =
      ", got " + std::string(torch::headeronly::toString(tensor.scalar_type())) + " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
  }
  text += "]";
  if (!tensor.is_contiguous()) text += " not contiguous";
  if (!tensor.is_cpu()) text += " not on the CPU";
  return text;
}

bool is_served(const Tensor& values) {
  return values.scalar_type() == ScalarType::Float || values.scalar_type() == ScalarType::BFloat16;
}

Activation parse_activation(const std::string& name, const char* op) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu") return Activation::kSilu;
  STD_TORCH_CHECK(false, op, ": expected an activation of none, relu, gelu, silu, got '", name,
                  "'");
}

const KernelInfo& pick_kernel(const std::string& name, Format format, int64_t block_rows,
                              int64_t tokens, const char* op) {
  const KernelInfo* kernel = name.empty() ? choose_kernel(format, block_rows, max64(1, tokens))
                                          : find_kernel(name.c_str());
  const std::string what =
      format == Format::kNM ? "n:m" : "blocks of " + std::to_string(block_rows) + " rows";
  STD_TORCH_CHECK(kernel != nullptr, op, ": no kernel ",
                  name.empty() ? "" : "named '" + name + "' ", "for ", what,
                  "; python -m sparsekern kernels lists them");
  STD_TORCH_CHECK(
      kernel->run != nullptr && isa_supported(kernel->isa) && kernel->takes(format, block_rows), op,
      ": kernel '", kernel->name, "' does not run on this CPU or does not take ", what);
  return *kernel;
}

// The index values were verified when the weight was packed or loaded; shapes are checked here, at
// each call, because a wrong one would read outside a tensor.
BlockMatrix view_blocks(const Tensor& values, const Tensor& columns, const Tensor& offsets,
                        int64_t out_features, int64_t in_features) {
  STD_TORCH_CHECK(
      is_served(values) && values.dim() == 3 && values.is_contiguous() && values.is_cpu(),
      "sparsekern::block_linear: expected contiguous float32 or bfloat16 values "
      "[blocks, cols, rows] on the CPU",
      found(values));
  BlockMatrix a;
  a.out_features = out_features;
  a.in_features = in_features;
  a.cols = values.size(1);
  a.rows = values.size(2);
  // A tensor without elements may claim any shape: products of sizes must not overflow, nor a block
  // ask for scratch that no activation could fill.
  const auto is_size = [](int64_t size, int64_t most) { return size > 0 && size <= most; };
  constexpr int64_t kMostSide = 1 << 20;
  STD_TORCH_CHECK(
      is_size(out_features, INT32_MAX) && is_size(in_features, INT32_MAX) &&
          is_size(a.rows, max64(out_features, kMostSide)) &&
          is_size(a.cols, max64(in_features, kMostSide)),
      "sparsekern::block_linear: expected sizes > 0 that fit the weight, got blocks of ", a.rows,
      " x ", a.cols, " in a weight [", out_features, ", ", in_features, "]");
  STD_TORCH_CHECK(
      columns.scalar_type() == ScalarType::Byte && columns.is_contiguous() && columns.is_cpu() &&
          columns.dim() == 2 && columns.size(0) == values.size(0) && columns.size(1) == 2,
      "sparsekern::block_linear: expected uint8 columns [", values.size(0), ", 2]", found(columns));
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(columns.data_ptr()) % alignof(uint16_t) == 0,
                  "sparsekern::block_linear: expected columns at an even address");
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Int && offsets.is_contiguous() &&
                      offsets.is_cpu() && offsets.dim() == 1 &&
                      offsets.size(0) == a.block_rows() + 1,
                  "sparsekern::block_linear: expected int32 offsets [", a.block_rows() + 1, "]",
                  found(offsets));
  // Kernels add offsets to it even where no block is stored.
  static const float kNoValues = 0.0f;
  const bool is_read = values.size(0) > 0 && values.scalar_type() == ScalarType::Float;
  a.values = is_read ? static_cast<const float*>(values.data_ptr()) : &kNoValues;
  a.columns = static_cast<const uint16_t*>(columns.data_ptr());
  a.offsets = static_cast<const int32_t*>(offsets.data_ptr());
  STD_TORCH_CHECK(a.offsets[a.block_rows()] == values.size(0),
                  "sparsekern::block_linear: offsets end at ", a.offsets[a.block_rows()],
                  ", expected the number of blocks, ", values.size(0));
  a.density = double(values.size(0)) / double(a.block_rows() * ceil_div(in_features, a.cols));
  return a;
}

NMMatrix view_nm(const Tensor& values, const Tensor& positions, int64_t n, int64_t m,
                 int64_t out_features, int64_t in_features) {
  // Sizes are bounded before they are multiplied.
  STD_TORCH_CHECK(n >= 1 && n < m && m <= 32 && out_features > 0 && out_features <= INT32_MAX &&
                      in_features > 0 && in_features <= INT32_MAX,
                  "sparsekern::nm_linear: expected 1 <= n < m <= 32 and sizes > 0, got ", n, ":", m,
                  " of a weight [", out_features, ", ", in_features, "]");
  NMMatrix a;
  a.out_features = out_features;
  a.in_features = in_features;
  a.n = n;
  a.m = m;
  STD_TORCH_CHECK(
      is_served(values) && values.is_contiguous() && values.is_cpu() && values.dim() == 4 &&
          values.size(0) == a.row_tiles() && values.size(1) == a.group_tiles() &&
          values.size(2) == 32 && values.size(3) == 4 * n,
      "sparsekern::nm_linear: expected contiguous float32 or bfloat16 values [", a.row_tiles(),
      ", ", a.group_tiles(), ", 32, ", 4 * n, "] on the CPU", found(values));
  STD_TORCH_CHECK(positions.scalar_type() == ScalarType::Byte && positions.is_contiguous() &&
                      positions.is_cpu() && positions.dim() == 5 &&
                      positions.size(0) == a.row_tiles() && positions.size(1) == a.group_tiles() &&
                      positions.size(2) == 8 && positions.size(3) == 2 &&
                      positions.size(4) == n * a.position_bits(),
                  "sparsekern::nm_linear: expected uint8 positions [", a.row_tiles(), ", ",
                  a.group_tiles(), ", 8, 2, ", n * a.position_bits(), "]", found(positions));
  const bool is_read = values.scalar_type() == ScalarType::Float;
  a.values = is_read ? static_cast<const float*>(values.data_ptr()) : nullptr;
  a.positions = static_cast<const uint8_t*>(positions.data_ptr());
  return a;
}

// Floats from one row of the last dimension to the next, if one number says it for all of them and
// rows are contiguous; else -1.
int64_t row_stride(const Tensor& x) {
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

void on_torch_threads(int64_t parts, void (*body)(int64_t, void*), void* context) {
  if (parts == 1) return body(0, context);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, context);
  });
}

template <class T>
CallOf<T> call_of(const Tensor& input, int64_t x_stride, Tensor& y, int64_t out_features,
                  const std::optional<Tensor>& bias, Activation activation) {
  return {static_cast<const T*>(input.data_ptr()),
          x_stride,
          static_cast<T*>(y.data_ptr()),
          out_features,
          bias.has_value() ? static_cast<const T*>(bias->data_ptr()) : nullptr,
          activation};
}

// activation(x * a^T + bias), by the kernel of that name, or the one chosen if it is empty.
template <class Matrix>
Tensor linear(const char* op, const Tensor& x, Format format, int64_t block_rows, const Matrix& a,
              const Tensor& values, std::optional<Tensor> bias, const std::string& activation_name,
              const std::string& kernel_name) {
  const ScalarType dtype = values.scalar_type();
  const char* const dtype_name = dtype == ScalarType::Float ? "float32" : "bfloat16";
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == dtype, op, ": expected a ", dtype_name,
                  " input on the CPU, like the values", found(x));
  STD_TORCH_CHECK(dims >= 1 && x.size(dims - 1) == a.in_features, op, ": expected an input [..., ",
                  a.in_features, "]", found(x));
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = a.out_features;
  int64_t tokens = 1;
  for (int64_t i = 0; i + 1 < dims; ++i) tokens *= x.size(i);

  int64_t x_stride = row_stride(x);
  const Tensor input = x_stride >= 0 ? x : torch::stable::contiguous(x);
  if (x_stride < 0) x_stride = a.in_features;
  Tensor y = torch::stable::empty(shape, dtype);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == dtype && bias->dim() == 1 &&
                        bias->size(0) == a.out_features,
                    op, ": expected a ", dtype_name, " bias [", a.out_features, "]", found(*bias));
    if (!bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
  }
  const Activation activation = parse_activation(activation_name, op);
  const KernelInfo& kernel = pick_kernel(kernel_name, format, block_rows, tokens, op);
  const int64_t threads = torch::stable::get_num_threads();
  if (dtype == ScalarType::Float) {
    const auto call = call_of<float>(input, x_stride, y, a.out_features, bias, activation);
    run_linear(kernel, a, call, tokens, threads, on_torch_threads);
  } else {
    const auto call = call_of<BFloat16>(input, x_stride, y, a.out_features, bias, activation);
    run_linear(kernel, a, static_cast<const BFloat16*>(values.data_ptr()), call, tokens, threads,
               on_torch_threads);
  }
  return y;
}

Tensor block_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                    const Tensor& offsets, std::optional<Tensor> bias, int64_t out_features,
                    int64_t in_features, std::string activation, std::string kernel_name) {
  const BlockMatrix a = view_blocks(values, columns, offsets, out_features, in_features);
  return linear("sparsekern::block_linear", x, Format::kBlock, a.rows, a, values, std::move(bias),
                activation, kernel_name);
}

Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& positions,
                 std::optional<Tensor> bias, int64_t n, int64_t m, int64_t out_features,
                 int64_t in_features, std::string activation, std::string kernel_name) {
  const NMMatrix a = view_nm(values, positions, n, m, out_features, in_features);
  return linear("sparsekern::nm_linear", x, Format::kNM, 1, a, values, std::move(bias), activation,
                kernel_name);
}

}  // namespace
}  // namespace sparsekern

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("block_linear", TORCH_BOX(&sparsekern::block_linear));
  m.impl("nm_linear", TORCH_BOX(&sparsekern::nm_linear));
}
