// What tests call: the kernels by their names in the table, on plain arrays.
#include "cuda/block_product.h"
#include "cuda/columns_product.h"
#include "cuda/conv_product.h"
#include "cuda/decode.h"
#include "cuda/grad_product.h"
#include "cuda/kernel.h"
#include "cuda/nm_product.h"

using namespace sparsekern;

namespace {

// As emulator.py has it.
struct Product {
  const uint16_t *x, *bias;
  uint16_t* y;
  float* partials;
  int64_t x_stride, tokens, inputs, outputs, padded_outputs;
  int32_t activation, number, parts;
};

struct BlockWeight {
  const uint16_t *values, *columns;
  const int32_t *offsets, *counts, *block_rows_of_columns, *blocks_of_columns;
  int32_t rows, cols, block_rows, block_columns;
};

struct Geometry {
  int32_t image, row, pixel, channels, kernel_width;
  int32_t height, out_height, stride_down, padding_down, dilation_down;
  int32_t width, out_width, stride_right, padding_right, dilation_right;
};

struct NMWeight {
  const uint16_t* values;
  const uint8_t* positions;
  int32_t row_tiles, group_tiles;
};

struct Gradient {
  const uint16_t *x, *grad;
  uint16_t* grad_values;
  int64_t x_stride, grad_stride, tokens;
  int32_t blocks, number;
};

struct Columns {
  int32_t *counts, *block_rows, *blocks;
};

cuda::Call call_of(const Product& p) {
  return {{p.x},
          p.x_stride,
          {p.y},
          {p.bias},
          p.tokens,
          p.inputs,
          p.outputs,
          static_cast<Activation>(p.activation),
          {{p.partials}, p.padded_outputs, p.parts}};
}

cuda::Blocks blocks_of(const BlockWeight& w) {
  return {{w.values}, {w.columns}, {w.offsets}, w.rows, w.cols, w.block_rows, w.block_columns};
}

template <bool kTransposed>
cudaError_t run_blocks(const cuda::KernelInfo& kernel, const Product& p, const BlockWeight& w) {
  const cuda::BlockColumns transpose{{w.counts}, {w.block_rows_of_columns}, {w.blocks_of_columns}};
  const auto product =
      cuda::block_product<kTransposed>(call_of(p), blocks_of(w), transpose, kernel.height);
  return kernel.launch(&product, static_cast<cuda::Number>(p.number), nullptr);
}

}  // namespace

extern "C" {

// Of a product with blocks of so many outputs, or of n:m and 1.
const char* chosen_kernel(int32_t is_nm, int64_t outputs, int64_t tokens) {
  const cuda::KernelInfo* kernel = cuda::choose_kernel(is_nm ? Format::kNM : Format::kBlock,
                                                       cuda::Purpose::kLinear, outputs, tokens);
  return kernel == nullptr ? "none" : kernel->name;
}

// Of strips of few tokens.
int32_t chosen_parts(int64_t strips, int64_t slices, int32_t slice_bytes, int64_t outputs,
                     int64_t tokens, int32_t processors, double bytes_per_ns) {
  return cuda::parts_of_strips({strips, slices, slice_bytes, outputs, tokens},
                               {processors, bytes_per_ns});
}

const char* run_block_kernel(const char* name, const Product* p, const BlockWeight* w) {
  const cuda::KernelInfo* kernel = cuda::find_kernel(name);
  if (kernel == nullptr) return "no such kernel";
  return cudaGetErrorName(kernel->purpose == cuda::Purpose::kLinear
                              ? run_blocks<false>(*kernel, *p, *w)
                              : run_blocks<true>(*kernel, *p, *w));
}

const char* run_conv_kernel(const char* name, const Product* p, const BlockWeight* w,
                            const Geometry* g) {
  const cuda::KernelInfo* kernel = cuda::find_kernel(name);
  if (kernel == nullptr) return "no such kernel";
  const cuda::Images images{
      g->image,
      g->row,
      g->pixel,
      {g->height, g->out_height, g->stride_down, g->padding_down, g->dilation_down},
      {g->width, g->out_width, g->stride_right, g->padding_right, g->dilation_right},
      cuda::Divisor(g->channels),
      cuda::Divisor(g->kernel_width)};
  const cuda::ConvProduct product{
      cuda::block_product<false>(call_of(*p), blocks_of(*w), {}, kernel->height), images};
  return cudaGetErrorName(kernel->launch(&product, static_cast<cuda::Number>(p->number), nullptr));
}

// What a kernel makes of number / divisor.
uint32_t emulated_quotient(uint32_t number, uint32_t divisor) {
  return cuda::Divisor(divisor).quotient(number);
}

const char* run_nm_kernel(const char* name, const Product* p, const NMWeight* w) {
  const cuda::KernelInfo* kernel = cuda::find_kernel(name);
  if (kernel == nullptr) return "no such kernel";
  const cuda::NMProduct product{
      call_of(*p), {w->values}, {w->positions}, w->row_tiles, w->group_tiles};
  return cudaGetErrorName(kernel->launch(&product, static_cast<cuda::Number>(p->number), nullptr));
}

const char* run_grad_values_kernel(const char* name, const Gradient* g, const BlockWeight* w) {
  const cuda::KernelInfo* kernel = cuda::find_kernel(name);
  if (kernel == nullptr) return "no such kernel";
  const cuda::GradProduct product{{{g->x}, g->x_stride, g->x_stride},
                                  {{g->grad}, g->grad_stride, g->grad_stride},
                                  g->tokens,
                                  blocks_of(*w),
                                  g->blocks,
                                  {g->grad_values}};
  return cudaGetErrorName(kernel->launch(&product, static_cast<cuda::Number>(g->number), nullptr));
}

const char* run_columns_kernel(const char* name, const Columns* c, const BlockWeight* w) {
  const cuda::KernelInfo* kernel = cuda::find_kernel(name);
  if (kernel == nullptr) return "no such kernel";
  const cuda::ColumnsProduct product{blocks_of(*w), {c->counts}, {c->block_rows}, {c->blocks}};
  return cudaGetErrorName(kernel->launch(&product, cuda::Number::kBFloat16, nullptr));
}

}  // extern "C"
