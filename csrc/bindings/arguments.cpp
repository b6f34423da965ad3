#include "bindings/arguments.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <type_traits>

#include "bindings/common.h"

namespace sparsekern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void check_values(const Tensor& values, ScalarType dtype, const char* op) {
  STD_TORCH_CHECK(values.scalar_type() == dtype && values.is_contiguous() && values.is_cpu(), op,
                  ": expected contiguous ", dtype_name(dtype), " values on the CPU", found(values));
}

template <class T>
constexpr ScalarType kDtype = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::BFloat16;

}  // namespace

const char* dtype_name(ScalarType dtype) {
  return dtype == ScalarType::Float ? "float32" : "bfloat16";
}

std::string format_text(Format format, int64_t block_rows) {
  return format == Format::kNM ? "n:m" : "blocks of " + std::to_string(block_rows) + " rows";
}

std::string found(const Tensor& tensor) {
  return ", got " + tensor_text(tensor) + (tensor.is_cpu() ? "" : " not on the CPU");
}

Numbers numbers_of(const Tensor& values, const char* op) {
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, op,
                  ": expected float32 or bfloat16 values", found(values));
  return dtype == ScalarType::Float ? Numbers::kFloat32 : Numbers::kBFloat16;
}

template <class T>
BlockMatrixOf<T> view_blocks(const Tensor& values, const Tensor& columns, const Tensor& offsets,
                             int64_t out_features, int64_t in_features, const char* op) {
  check_values(values, kDtype<T>, op);
  STD_TORCH_CHECK(values.dim() == 3, op, ": expected values [blocks, cols, rows]", found(values));
  BlockMatrixOf<T> a;
  a.out_features = out_features;
  a.in_features = in_features;
  a.cols = values.size(1);
  a.rows = values.size(2);
  // A tensor without elements may claim any shape: products of sizes must not overflow, nor a block
  // ask for scratch that no activation could fill.
  const auto is_size = [](int64_t size, int64_t most) { return size > 0 && size <= most; };
  constexpr int64_t kMostSide = 1 << 20;
  STD_TORCH_CHECK(is_size(out_features, INT32_MAX) && is_size(in_features, INT32_MAX) &&
                      is_size(a.rows, max64(out_features, kMostSide)) &&
                      is_size(a.cols, max64(in_features, kMostSide)),
                  op, ": expected sizes > 0 that fit the weight, got blocks of ", a.rows, " x ",
                  a.cols, " in a weight [", out_features, ", ", in_features, "]");
  STD_TORCH_CHECK(columns.scalar_type() == ScalarType::Byte && columns.is_contiguous() &&
                      columns.is_cpu() && columns.dim() == 2 && columns.size(0) == values.size(0) &&
                      columns.size(1) == 2,
                  op, ": expected uint8 columns [", values.size(0), ", 2]", found(columns));
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(columns.data_ptr()) % alignof(uint16_t) == 0, op,
                  ": expected columns at an even address");
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Int && offsets.is_contiguous() &&
                      offsets.is_cpu() && offsets.dim() == 1 &&
                      offsets.size(0) == a.block_rows() + 1,
                  op, ": expected int32 offsets [", a.block_rows() + 1, "]", found(offsets));
  // Kernels add offsets to it even where no block is stored.
  static const T kNoValues{};
  a.values = values.size(0) > 0 ? static_cast<const T*>(values.data_ptr()) : &kNoValues;
  a.columns = static_cast<const uint16_t*>(columns.data_ptr());
  a.offsets = static_cast<const int32_t*>(offsets.data_ptr());
  STD_TORCH_CHECK(a.offsets[a.block_rows()] == values.size(0), op, ": offsets end at ",
                  a.offsets[a.block_rows()], ", expected the number of blocks, ", values.size(0));
  a.density = double(values.size(0)) / double(a.block_rows() * ceil_div(in_features, a.cols));
  return a;
}

template <class T>
NMMatrixOf<T> view_nm(const Tensor& values, const Tensor& positions, int64_t n, int64_t m,
                      int64_t out_features, int64_t in_features, const char* op) {
  // Sizes are bounded before they are multiplied.
  STD_TORCH_CHECK(n >= 1 && n < m && m <= 32 && out_features > 0 && out_features <= INT32_MAX &&
                      in_features > 0 && in_features <= INT32_MAX,
                  op, ": expected 1 <= n < m <= 32 and sizes > 0, got ", n, ":", m,
                  " of a weight [", out_features, ", ", in_features, "]");
  NMMatrixOf<T> a;
  a.out_features = out_features;
  a.in_features = in_features;
  a.n = n;
  a.m = m;
  check_values(values, kDtype<T>, op);
  STD_TORCH_CHECK(values.dim() == 4 && values.size(0) == a.row_tiles() &&
                      values.size(1) == a.group_tiles() && values.size(2) == 32 &&
                      values.size(3) == 4 * n,
                  op, ": expected values [", a.row_tiles(), ", ", a.group_tiles(), ", 32, ", 4 * n,
                  "]", found(values));
  STD_TORCH_CHECK(positions.scalar_type() == ScalarType::Byte && positions.is_contiguous() &&
                      positions.is_cpu() && positions.dim() == 5 &&
                      positions.size(0) == a.row_tiles() && positions.size(1) == a.group_tiles() &&
                      positions.size(2) == 8 && positions.size(3) == 2 &&
                      positions.size(4) == n * a.position_bits(),
                  op, ": expected uint8 positions [", a.row_tiles(), ", ", a.group_tiles(),
                  ", 8, 2, ", n * a.position_bits(), "]", found(positions));
  a.values = static_cast<const T*>(values.data_ptr());
  a.positions = static_cast<const uint8_t*>(positions.data_ptr());
  return a;
}

template BlockMatrixOf<float> view_blocks(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                          int64_t, const char*);
template BlockMatrixOf<BFloat16> view_blocks(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                             int64_t, const char*);
template NMMatrixOf<float> view_nm(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t,
                                   const char*);
template NMMatrixOf<BFloat16> view_nm(const Tensor&, const Tensor&, int64_t, int64_t, int64_t,
                                      int64_t, const char*);

Rows view_rows(const Tensor& x, ScalarType dtype, int64_t columns, const char* name,
               const char* op) {
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == dtype, op, ": expected ", name, " of ",
                  dtype_name(dtype), " on the CPU, like the values", found(x));
  STD_TORCH_CHECK(dims >= 1 && x.size(dims - 1) == columns, op, ": expected ", name, " [..., ",
                  columns, "]", found(x));
  const int64_t count = row_count(x), stride = row_stride(x);
  return {stride >= 0 ? x : torch::stable::contiguous(x), stride >= 0 ? stride : columns, count};
}

void on_torch_threads(int64_t parts, void (*body)(int64_t, void*), void* context) {
  if (parts == 1) return body(0, context);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, context);
  });
}

}  // namespace sparsekern
