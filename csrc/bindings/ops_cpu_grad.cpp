// The CPU implementations of the gradients of sparsekern::block_linear and nm_linear, through
// torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "cpu/grad_dispatch.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const GradKernelInfo& pick_grad_kernel(const std::string& name, GradOp grad, Format format,
                                       int64_t block_rows, const char* op) {
  const GradKernelInfo* kernel =
      name.empty() ? choose_grad_kernel(grad, format, block_rows) : find_grad_kernel(name.c_str());
  const std::string what = format_text(format, block_rows);
  STD_TORCH_CHECK(kernel != nullptr, op, ": no kernel ",
                  name.empty() ? "" : "named '" + name + "' ", "of this gradient for ", what,
                  "; python -m sparsekern kernels lists them");
  STD_TORCH_CHECK(kernel->run != nullptr && isa_supported(kernel->isa) &&
                      kernel->takes(grad, format, block_rows),
                  op, ": kernel '", kernel->name, "' does not run on this CPU or does not take ",
                  what, "; python -m sparsekern kernels lists them");
  return *kernel;
}

template <class Matrix>
void run(const GradKernelInfo& kernel, const Matrix& a, const GradCall& call, int64_t tokens) {
  run_grad(kernel, a, call, tokens, torch::stable::get_num_threads(), on_torch_threads);
}

template <class Matrix>
Tensor grad_input(const char* op, const Tensor& grad, Format format, int64_t block_rows,
                  const Matrix& a, const std::string& kernel_name) {
  const GradKernelInfo& kernel =
      pick_grad_kernel(kernel_name, GradOp::kInput, format, block_rows, op);
  const Rows rows = view_rows(grad, ScalarType::Float, a.out_features, "a gradient", op);
  std::vector<int64_t> shape(grad.sizes().begin(), grad.sizes().end());
  shape.back() = a.in_features;
  Tensor out = torch::stable::empty(shape, ScalarType::Float);
  const GradCall call{rows.data<float>(), rows.stride, nullptr, 0,
                      static_cast<float*>(out.data_ptr())};
  run(kernel, a, call, rows.count);
  return out;
}

template <class Matrix>
Tensor grad_values(const char* op, const Tensor& grad, const Tensor& x, const Tensor& values,
                   Format format, int64_t block_rows, const Matrix& a,
                   const std::string& kernel_name) {
  const GradKernelInfo& kernel =
      pick_grad_kernel(kernel_name, GradOp::kValues, format, block_rows, op);
  const Rows rows = view_rows(grad, ScalarType::Float, a.out_features, "a gradient", op);
  const Rows inputs = view_rows(x, ScalarType::Float, a.in_features, "an input", op);
  STD_TORCH_CHECK(rows.count == inputs.count, op, ": expected as many rows in the gradient as in ",
                  "the input, got ", rows.count, " and ", inputs.count);
  Tensor out = torch::stable::empty(values.sizes(), ScalarType::Float);
  const GradCall call{rows.data<float>(), rows.stride, inputs.data<float>(), inputs.stride,
                      static_cast<float*>(out.data_ptr())};
  if (a.stored() > 0) run(kernel, a, call, rows.count);
  return out;
}

Tensor block_grad_input(const Tensor& grad, const Tensor& values, const Tensor& columns,
                        const Tensor& offsets, int64_t out_features, int64_t in_features,
                        std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear_grad_input";
  const BlockMatrix a =
      view_blocks<float>(values, columns, offsets, out_features, in_features, kOp);
  return grad_input(kOp, grad, Format::kBlock, a.rows, a, kernel_name);
}

Tensor block_grad_values(const Tensor& grad, const Tensor& x, const Tensor& values,
                         const Tensor& columns, const Tensor& offsets, int64_t out_features,
                         int64_t in_features, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::block_linear_grad_values";
  const BlockMatrix a =
      view_blocks<float>(values, columns, offsets, out_features, in_features, kOp);
  return grad_values(kOp, grad, x, values, Format::kBlock, a.rows, a, kernel_name);
}

Tensor nm_grad_input(const Tensor& grad, const Tensor& values, const Tensor& positions, int64_t n,
                     int64_t m, int64_t out_features, int64_t in_features,
                     std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::nm_linear_grad_input";
  const NMMatrix a = view_nm<float>(values, positions, n, m, out_features, in_features, kOp);
  return grad_input(kOp, grad, Format::kNM, 1, a, kernel_name);
}

Tensor nm_grad_values(const Tensor& grad, const Tensor& x, const Tensor& values,
                      const Tensor& positions, int64_t n, int64_t m, int64_t out_features,
                      int64_t in_features, std::string kernel_name) {
  constexpr const char* kOp = "sparsekern::nm_linear_grad_values";
  const NMMatrix a = view_nm<float>(values, positions, n, m, out_features, in_features, kOp);
  return grad_values(kOp, grad, x, values, Format::kNM, 1, a, kernel_name);
}

}  // namespace
}  // namespace sparsekern

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("block_linear_grad_input", TORCH_BOX(&sparsekern::block_grad_input));
  m.impl("block_linear_grad_values", TORCH_BOX(&sparsekern::block_grad_values));
  m.impl("nm_linear_grad_input", TORCH_BOX(&sparsekern::nm_grad_input));
  m.impl("nm_linear_grad_values", TORCH_BOX(&sparsekern::nm_grad_values));
}
