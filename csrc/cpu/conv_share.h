// One thread's share of a convolution and the memory that it may use.
#pragma once

#include "core/conv.h"
#include "core/view.h"

namespace sparsekern {

// The memory of a share.
struct ConvRoom {
  int32_t* offsets;  // of all inputs of the weight
  float* planes;     // of a band of rows, and zeros as long as one
  float* own;        // sums, cursors and a K-tile of kernels of single weights
  float* weights;    // of a chunk, and what follows, if they have to be widened
  float* bias;
  int32_t* block_offsets;
  int64_t l1_bytes;
};

// Rows of outputs, counted through all images, and bands of the weight's outputs.
struct ConvShare {
  int64_t row_begin, row_end;
  int64_t band_begin, band_end;
  int64_t band_rows;  // output rows that are treated together, at most
  bool readable;      // whether kernels find pixels in x itself, if the rows fill a vector
  ConvRoom room;
};

// The weight is a BlockMatrixOf<T> or an NMMatrixOf<T>, as the kernel's format says, and the call
// a ConvCallOf<T>, T being BFloat16 or else float.
using ConvKernel = void (*)(const void* weight, const void* call, bool is_bfloat16,
                            const ConvShare* share);

constexpr int64_t kPlaneSlack = 256;                    // what vectors reach beyond the last plane
constexpr int64_t kConvChunkWeights = 64 * 1024;        // that stay in L2, at least those of a band
constexpr int64_t kMostConvPanel = 128;                 // pixels
constexpr int64_t conv_tile_floats(int64_t l1_bytes) {  // of a K-tile of pixels that stays in L1
  return l1_bytes * 3 / 16;
}

}  // namespace sparsekern
