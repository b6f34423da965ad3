// One thread's share of a convolution and the memory that it may use.
#pragma once

#include "core/conv.h"
#include "core/view.h"

namespace sparsekern {

// Rows of outputs, counted through all images, and bands of the weight's outputs.
struct ConvShare {
  int64_t row_begin, row_end;
  int64_t band_begin, band_end;
  int64_t band_rows;  // output rows that are treated together, at most
  bool readable;      // whether kernels find pixels in x itself, if the rows fill a vector
  float* scratch;     // 64-byte aligned, ConvRoom::floats
  int64_t l1_bytes;
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

// First band beyond those from `begin` on, one at least, that fill a chunk.
template <class Matrix>
int64_t conv_chunk_end(const Matrix& a, int64_t begin, int64_t bands_end) {
  int64_t end = begin + 1;
  while (end < bands_end &&
         a.stored_before(end + 1) - a.stored_before(begin) <= kConvChunkWeights) {
    ++end;
  }
  return end;
}

// The parts of a share's scratch.
struct ConvRoom {
  int32_t* offsets;  // of all inputs of the weight
  float* planes;     // of a band of rows, and zeros as long as one
  float* own;        // sums, cursors and a K-tile of kernels of single weights
  float* weights;    // of a chunk, and what follows, if they have to be widened
  float* bias;
  int32_t* block_offsets;
  int64_t l1_bytes;
  int64_t floats = 0;  // of all

  template <class Matrix, class T>
  ConvRoom(const Matrix& a, const ConvCallOf<T>& call, const ConvShare& share)
      : l1_bytes(share.l1_bytes) {
    // Rows that fill a vector are read in x, if any are.
    const int64_t copied = share.readable ? min64(share.band_rows, 16) : share.band_rows;
    const PlaneLayout layout(call, copied);
    const auto take = [&](int64_t count) {
      float* const part = share.scratch + floats;
      floats += ceil_div(count, 16) * 16;
      return part;
    };
    offsets = reinterpret_cast<int32_t*>(take(a.padded_in_features()));
    planes = take(call.channels * layout.channel + layout.rows * layout.pitch + kPlaneSlack);
    own = take(kMostCells + kMostCursors +
               max64(conv_tile_floats(l1_bytes), a.input_quantum() * kMostConvPanel));
    const bool widened = sizeof(T) != sizeof(float);
    weights = take(widened ? most_in_chunk(a, share) : 0);
    bias = take(widened ? a.out_features : 0);
    block_offsets = reinterpret_cast<int32_t*>(take(widened ? a.bands() + 1 : 0));
  }

 private:
  template <class Matrix>
  static int64_t most_in_chunk(const Matrix& a, const ConvShare& share) {
    int64_t most = kConvChunkWeights;
    for (int64_t band = share.band_begin; band < share.band_end; ++band) {
      most = max64(most, a.stored_before(band + 1) - a.stored_before(band));
    }
    return most;
  }
};

}  // namespace sparsekern
