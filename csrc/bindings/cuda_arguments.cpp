#include "bindings/cuda_arguments.h"

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "bindings/common.h"

namespace sparsekern::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kRowBytes = 16;

bool aligned(const Tensor& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % bytes == 0;
}

void check_weight_part(const Tensor& part, const Tensor& values, const char* name, const char* op) {
  STD_TORCH_CHECK(
      part.is_cuda() && part.get_device() == values.get_device() && part.is_contiguous(), op,
      ": expected contiguous ", name, " on the device of the values", found(part));
}

void check_sizes(int64_t out_features, int64_t in_features, const char* op) {
  STD_TORCH_CHECK(out_features > 0 && out_features <= INT32_MAX - 256 && in_features > 0 &&
                      in_features <= INT32_MAX - 256,
                  op, ": expected sizes from 1 to 2^31 - 257, got a weight [", out_features, ", ",
                  in_features, "]");
}

Gpu ask_for_gpu(int device) {
  int processors = 0, clock_khz = 0, bus_bits = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, device);
  cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, device);
  // Two bits a wire and clock. Where the clock is not told, what an SM of an H100 has.
  const double told = 2.0 * clock_khz * 1e3 * bus_bits / 8 / 1e9;
  return {processors, told > 0 ? told : 25.0 * processors};
}

}  // namespace

std::string found(const Tensor& tensor) {
  return ", got " + tensor_text(tensor) +
         (tensor.is_cuda()  ? " on cuda:" + std::to_string(tensor.get_device())
          : tensor.is_cpu() ? " on the CPU"
                            : " on another device");
}

// The function is in the library of a torch with CUDA, which nothing may link that is built without
// one; where there are CUDA tensors that library is loaded.
cudaStream_t current_stream(const Tensor& tensor, const char* op) {
  using Function = int32_t (*)(int32_t device, void** stream);
  static const Function function = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda == nullptr ? nullptr
                                 : reinterpret_cast<Function>(
                                       dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(function != nullptr && function(tensor.get_device(), &stream) == 0, op,
                  ": PyTorch does not tell its current CUDA stream; install a PyTorch with CUDA, ",
                  "2.10 or newer");
  return static_cast<cudaStream_t>(stream);
}

const Gpu& gpu_of(int32_t device, const char* op) {
  static const std::vector<Gpu> gpus = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::vector<Gpu> found(count);
    for (int i = 0; i < count; ++i) found[i] = ask_for_gpu(i);
    return found;
  }();
  STD_TORCH_CHECK(device >= 0 && size_t(device) < gpus.size(), op, ": CUDA finds ", gpus.size(),
                  " devices, got one on cuda:", device);
  return gpus[device];
}

Number number_of(const Tensor& values, const char* op) {
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op,
                  ": expected bfloat16 or float16 values for tensor cores", found(values));
  return dtype == ScalarType::BFloat16 ? Number::kBFloat16 : Number::kFloat16;
}

Blocks view_blocks(const Tensor& values, const Tensor& columns, const Tensor& offsets,
                   int64_t out_features, int64_t in_features, const char* op) {
  check_sizes(out_features, in_features, op);
  check_weight_part(values, values, "values", op);
  check_weight_part(columns, values, "columns", op);
  check_weight_part(offsets, values, "offsets", op);
  STD_TORCH_CHECK(values.dim() == 3 && aligned(values, kRowBytes), op,
                  ": expected values [blocks, cols, rows] at a multiple of 16 bytes",
                  found(values));
  const int64_t cols = values.size(1), rows = values.size(2);
  STD_TORCH_CHECK(
      rows > 0 && cols > 0 && rows % 16 == 0 && cols % 16 == 0 && rows <= INT32_MAX / cols, op,
      ": expected blocks of fewer than 2^31 weights whose sides are multiples of ", "16, got ",
      rows, " x ", cols);
  const int64_t block_rows = ceil_div(out_features, rows);
  STD_TORCH_CHECK(
      block_rows * rows <= INT32_MAX - 256 && ceil_div(in_features, cols) * cols <= INT32_MAX - 256,
      op, ": expected a weight of fewer than 2^31 - 256 rows and columns with the ",
      "padding of its blocks of ", rows, " x ", cols);
  STD_TORCH_CHECK(
      columns.scalar_type() == ScalarType::Byte && columns.dim() == 2 &&
          columns.size(0) == values.size(0) && columns.size(1) == 2 && aligned(columns, 2),
      op, ": expected uint8 columns [", values.size(0), ", 2] at an even address", found(columns));
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Int && offsets.dim() == 1 &&
                      offsets.size(0) == block_rows + 1,
                  op, ": expected int32 offsets [", block_rows + 1, "]", found(offsets));
  return {{bits_of(values)},
          {static_cast<const uint16_t*>(columns.data_ptr())},
          {int32s(offsets)},
          int(rows),
          int(cols),
          int(block_rows),
          int(ceil_div(in_features, cols))};
}

NMProduct view_two_of_four(const Tensor& values, const Tensor& positions, int64_t out_features,
                           int64_t in_features, const char* op) {
  check_sizes(out_features, in_features, op);
  check_weight_part(values, values, "values", op);
  check_weight_part(positions, values, "positions", op);
  const int64_t row_tiles = ceil_div(out_features, NMProduct::kTileOutputs);
  const int64_t group_tiles = ceil_div(in_features, NMProduct::kTileInputs);
  STD_TORCH_CHECK(values.dim() == 4 && values.size(0) == row_tiles &&
                      values.size(1) == group_tiles && values.size(2) == 32 &&
                      values.size(3) == 8 && aligned(values, kRowBytes),
                  op, ": expected values [", row_tiles, ", ", group_tiles,
                  ", 32, 8] at a multiple of 16 bytes", found(values));
  STD_TORCH_CHECK(positions.scalar_type() == ScalarType::Byte && positions.dim() == 5 &&
                      positions.size(0) == row_tiles && positions.size(1) == group_tiles &&
                      positions.size(2) == 8 && positions.size(3) == 2 && positions.size(4) == 4 &&
                      aligned(positions, kRowBytes),
                  op, ": expected uint8 positions [", row_tiles, ", ", group_tiles,
                  ", 8, 2, 4] at a multiple of 16 bytes", found(positions));
  return {{},
          {bits_of(values)},
          {static_cast<const uint8_t*>(positions.data_ptr())},
          int(row_tiles),
          int(group_tiles)};
}

PaddedRows padded_rows(const Tensor& x, const Tensor& values, int64_t columns, const char* name,
                       const char* op) {
  STD_TORCH_CHECK(x.is_cuda() && x.get_device() == values.get_device() &&
                      x.scalar_type() == values.scalar_type(),
                  op, ": expected ", name, " of the weight's dtype and device", found(x));
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == columns, op, ": expected ", name,
                  " [..., ", columns, "]", found(x));
  const int64_t count = row_count(x), stride = row_stride(x);
  constexpr int64_t kNumbers = kRowBytes / 2;
  const int64_t padded = ceil_div(columns, kNumbers) * kNumbers;
  if (padded == columns && stride >= 0 && stride % kNumbers == 0 && aligned(x, kRowBytes)) {
    return {x, stride, padded, count};
  }
  const std::vector<int64_t> rows{count, columns}, padding{0, padded - columns};
  Tensor flat = torch::stable::reshape(x, rows);
  if (padded > columns) flat = torch::stable::pad(flat, padding);
  // A contiguous tensor may still begin at an odd place.
  flat = aligned(flat, kRowBytes) ? torch::stable::contiguous(flat) : torch::stable::clone(flat);
  return {torch::stable::contiguous(flat), padded, padded, count};
}

PixelRows pixel_rows(const Tensor& x, const Tensor& values, int64_t channels, const char* op) {
  STD_TORCH_CHECK(x.is_cuda() && x.get_device() == values.get_device() &&
                      x.scalar_type() == values.scalar_type() && x.dim() == 4 &&
                      x.size(1) == channels,
                  op, ": expected an input [batch, ", channels,
                  ", height, width] of the weight's dtype and device", found(x));
  constexpr int64_t kNumbers = kRowBytes / 2;
  // Where there is one image, row or pixel, nobody asks where the next would be.
  const auto stride = [](const Tensor& images, int64_t dim) {
    return images.size(dim) == 1 ? kNumbers : images.stride(dim);
  };
  const auto rows_of = [&](const Tensor& images) -> PixelRows {
    return {images, stride(images, 0), stride(images, 2), stride(images, 3)};
  };
  const auto fits = [&](const PixelRows& rows) {
    return rows.memory.stride(1) == 1 && rows.image % kNumbers == 0 && rows.row % kNumbers == 0 &&
           rows.pixel % kNumbers == 0 && aligned(rows.memory, kRowBytes);
  };
  PixelRows rows = rows_of(x);
  if (!fits(rows)) {
    Tensor copy = torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
    // What was in that order already may begin at an odd place.
    rows = rows_of(aligned(copy, kRowBytes) ? copy : torch::stable::clone(copy));
  }
  const int64_t last = (x.size(2) - 1) * rows.row + (x.size(3) - 1) * rows.pixel + channels;
  STD_TORCH_CHECK(
      fits(rows) && rows.row <= INT32_MAX && rows.pixel <= INT32_MAX && last <= INT32_MAX, op,
      ": expected images of fewer than 2^31 numbers", found(x));
  return rows;
}

}  // namespace sparsekern::cuda
