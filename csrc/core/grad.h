// What the kernels of the gradients are called with: plain pointers and sizes, no torch, no std.
#pragma once

#include "core/view.h"

namespace sparsekern {

// Gradients of y = x * W^T, given that of y: with respect to x, or to the stored values of W.
enum class GradOp : int32_t { kInput, kValues };

struct GradCall {
  const float* grad;  // [tokens, out_features]
  int64_t grad_stride;
  const float* x;  // kValues: [tokens, in_features]
  int64_t x_stride;
  // kInput: [tokens, in_features], contiguous. kValues: as the values of W; zero in the padding.
  float* out;
};

// kValues sums over so many tokens at a time: two dozen rows of as many lie in L1, and they are
// enough for the horizontal sums at the end to cost little.
constexpr int64_t kGradTokens = 256;
// Inputs of a K-tile: of kValues, whose transpose of x fills 1 MiB of L2.
constexpr int64_t kGradTileInputs = 1024;
// Rows of grad's transpose that are made at a time, unless a band has more, and that are kept from
// one K-tile to the next.
constexpr int64_t kGradOutputs = 32;
constexpr int64_t kMostGradOutputs = 4096;

// One thread's share of a call: kInput is cut by tokens, kValues by bands or by inputs.
struct GradShare {
  int64_t token_begin, token_end;
  int64_t band_begin, band_end;
  int64_t input_begin, input_end;  // whole groups of input_quantum()
  bool first;        // kValues: of these tokens `out` is written; those of others are added to it
  int32_t* cursors;  // one for each band
  float* scratch;    // 64-byte aligned
};

// The weight is a BlockMatrix or an NMMatrix, as the kernel's format says.
using GradKernel = void (*)(const void* weight, const GradCall*, const GradShare*);

}  // namespace sparsekern
