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

#include "bindings/arguments.h"
#include "bindings/common.h"
#include "cpu/dispatch.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const KernelInfo& pick_kernel(const std::string& name, Format format, Numbers values,
                              int64_t block_rows, int64_t tokens, const char* op) {
  const KernelInfo* kernel = name.empty()
                                 ? choose_kernel(format, values, block_rows, max64(1, tokens))
                                 : find_kernel(name.c_str());
  const std::string what = format_text(format, block_rows);
  STD_TORCH_CHECK(kernel != nullptr, op, ": no kernel ",
                  name.empty() ? "" : "named '" + name + "' ", "for ", what,
                  "; python -m sparsekern kernels lists them");
  STD_TORCH_CHECK(kernel->run != nullptr && isa_supported(kernel->isa) &&
                      kernel->takes(format, values, block_rows),
                  op, ": kernel '", kernel->name, "' does not run on this CPU or does not take ",
                  what, " of ", values == Numbers::kFloat32 ? "float32" : "bfloat16");
  return *kernel;
}

// activation(x * a^T + bias), by the kernel of that name, or the one chosen if it is empty.
template <class Matrix>
Tensor linear(const char* op, const Tensor& x, Format format, int64_t block_rows, const Matrix& a,
              ScalarType dtype, std::optional<Tensor> bias, const std::string& activation_name,
              const std::string& kernel_name) {
  using T = typename Matrix::Value;
  const Rows rows = view_rows(x, dtype, a.in_features, "an input", op);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = a.out_features;
  Tensor y = torch::stable::empty(shape, dtype);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == dtype && bias->dim() == 1 &&
                        bias->size(0) == a.out_features,
                    op, ": expected a ", dtype_name(dtype), " bias [", a.out_features, "]",
                    found(*bias));
    if (!bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
  }
  const CallOf<T> call{rows.data<T>(),
                       rows.stride,
                       static_cast<T*>(y.data_ptr()),
                       a.out_features,
                       bias.has_value() ? static_cast<const T*>(bias->data_ptr()) : nullptr,
                       parse_activation(activation_name, op)};
  const Numbers values = dtype == ScalarType::Float ? Numbers::kFloat32 : Numbers::kBFloat16;
  const KernelInfo& kernel = pick_kernel(kernel_name, format, values, block_rows, rows.count, op);
  run_linear(kernel, a, call, rows.count, torch::stable::get_num_threads(), on_torch_threads);
  return y;
}

Tensor block_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                    const Tensor& offsets, std::optional<Tensor> bias, int64_t out_features,
                    int64_t in_features, std::string activation, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear";
  const auto run = [&](const auto& a) {
    return linear(kOp, x, Format::kBlock, a.rows, a, values.scalar_type(), std::move(bias),
                  activation, kernel_name);
  };
  if (numbers_of(values, kOp) == Numbers::kFloat32) {
    return run(view_blocks<float>(values, columns, offsets, out_features, in_features, kOp));
  }
  return run(view_blocks<BFloat16>(values, columns, offsets, out_features, in_features, kOp));
}

Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& positions,
                 std::optional<Tensor> bias, int64_t n, int64_t m, int64_t out_features,
                 int64_t in_features, std::string activation, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::nm_linear";
  const auto run = [&](const auto& a) {
    return linear(kOp, x, Format::kNM, 1, a, values.scalar_type(), std::move(bias), activation,
                  kernel_name);
  };
  if (numbers_of(values, kOp) == Numbers::kFloat32) {
    return run(view_nm<float>(values, positions, n, m, out_features, in_features, kOp));
  }
  return run(view_nm<BFloat16>(values, positions, n, m, out_features, in_features, kOp));
}

}  // namespace
}  // namespace sparsekern

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("block_linear", TORCH_BOX(&sparsekern::block_linear));
  m.impl("nm_linear", TORCH_BOX(&sparsekern::nm_linear));
}
