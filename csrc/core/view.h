// The C view of the packed layouts: plain pointers and sizes, no torch, no std.
// Everything a kernel may read or write is reachable from these three structs.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sparsekern {

// A weight [out_features, in_features] in blocks of rows x cols (sparsekern/layouts/block.py).
struct BlockMatrix {
  const float* values;      // [blocks][cols][rows]
  const uint16_t* columns;  // [blocks], block column, ascending within a block row
  const int32_t* offsets;   // [block_rows() + 1], first block of each block row
  int64_t out_features;
  int64_t in_features;
  int64_t rows;
  int64_t cols;

  int64_t block_rows() const { return (out_features + rows - 1) / rows; }
  int64_t padded_in_features() const { return (in_features + cols - 1) / cols * cols; }
};

enum class Activation : int32_t { kNone, kRelu, kGelu, kSilu };

// y = activation(x * W^T + bias), x [tokens, in_features], y [tokens, out_features].
struct LinearCall {
  const float* x;
  int64_t x_stride;  // floats from one token to the next
  float* y;
  int64_t y_stride;
  const float* bias;  // [out_features] or null
  Activation activation;
};

// Block rows that a kernel takes up at a time, at most: their spans lie in the scratch.
constexpr int64_t kMostChunkRows = 4096;

// One thread's share of a call, and the memory it may use: for spans, and for packed activations.
struct Share {
  int64_t token_begin, token_end;
  int64_t row_begin, row_end;  // block rows
  float* scratch;              // 64-byte aligned
  int64_t scratch_floats;
};

using LinearKernel = void (*)(const BlockMatrix*, const LinearCall*, const Share*);

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sparsekern
