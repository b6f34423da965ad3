// The C view of the packed layouts: plain pointers and sizes, no torch, no std.
// Everything a kernel may read or write is reachable from these structs.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Packed tensors are little-endian, in memory as in files.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a little-endian machine");

namespace sparsekern {

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The packed forms that kernels read. Work is cut at bands of outputs, and at whole quanta of
// inputs.
enum class Format : int32_t { kBlock, kNM };

// A bfloat16: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

// What a kernel multiplies. Those of float32 serve bfloat16 too, whose numbers are widened for
// them.
enum class Numbers : int32_t { kFloat32, kBFloat16 };

// A weight [out_features, in_features] in blocks of rows x cols (sparsekern/layouts/block.py).
template <class T>
struct BlockMatrixOf {
  using Value = T;

  const T* values;          // [blocks][cols][rows]
  const uint16_t* columns;  // [blocks], block column, ascending within a block row
  const int32_t* offsets;   // [block_rows() + 1], first block of each block row
  int64_t out_features;
  int64_t in_features;
  int64_t rows;
  int64_t cols;
  double density;  // of stored blocks, in the whole weight if this is a part of it

  int64_t block_rows() const { return ceil_div(out_features, rows); }
  int64_t padded_in_features() const { return ceil_div(in_features, cols) * cols; }

  int64_t bands() const { return block_rows(); }
  // A part of a weight may begin with a later block than the first.
  int64_t stored() const { return (offsets[block_rows()] - offsets[0]) * rows * cols; }
  int64_t band_outputs() const { return rows; }
  int64_t input_quantum() const { return cols; }
  int64_t stored_before(int64_t band) const { return offsets[band] * rows * cols; }
  // What the bands before this one cost, in blocks: a block row without any costs a little too.
  int64_t cost_before(int64_t band) const { return offsets[band] + band; }
};
using BlockMatrix = BlockMatrixOf<float>;

// A weight [out_features, in_features] of which each row keeps n of every m inputs, in the order of
// tensor-core fragments (sparsekern/layouts/fragments.py): in a tile of 16 rows and 8 groups, row
// g + 8 pair and group q + 4 half.
template <class T>
struct NMMatrixOf {
  using Value = T;
  static constexpr int64_t kTileRows = 16, kTileGroups = 8;

  const T* values;           // [row tiles][group tiles][g][q][half][pair][n]
  const uint8_t* positions;  // [row tiles][group tiles][g][half][pair][q][n] in position_bits()
  int64_t out_features;
  int64_t in_features;
  int64_t n, m;

  int64_t position_bits() const { return m <= 4 ? 2 : m <= 16 ? 4 : 8; }
  int64_t tile_inputs() const { return kTileGroups * m; }
  int64_t tile_values() const { return kTileRows * kTileGroups * n; }
  int64_t row_tiles() const { return ceil_div(out_features, kTileRows); }
  int64_t group_tiles() const { return ceil_div(in_features, tile_inputs()); }
  int64_t padded_in_features() const { return group_tiles() * tile_inputs(); }

  // Where a row's values and positions begin in a group tile. `row_tile`: group tiles of a row
  // tile, times 8. Kernels may know n and the bits of a position as constants, and say them.
  struct Row {
    const T* values;
    const uint8_t* positions;
  };
  Row row_of(uint64_t row, int64_t group_tile, int64_t row_tile, int64_t n, int64_t bits) const {
    const uint64_t tile_row = row % 16, pair = tile_row / 8;
    const int64_t at = row / 16 * row_tile + group_tile * 8 + tile_row % 8;
    return {values + at * (16 * n) + pair * n,
            positions + at * (2 * n * bits) + pair * (n * bits / 2)};
  }

  int64_t bands() const { return row_tiles(); }
  int64_t stored() const { return row_tiles() * group_tiles() * tile_values(); }
  int64_t band_outputs() const { return kTileRows; }
  int64_t input_quantum() const { return tile_inputs(); }
  int64_t stored_before(int64_t band) const { return band * group_tiles() * tile_values(); }
  int64_t cost_before(int64_t band) const { return band; }
};
using NMMatrix = NMMatrixOf<float>;

template <class T>
double density_of(const BlockMatrixOf<T>& a) {
  return a.density;
}
template <class T>
double density_of(const NMMatrixOf<T>& a) {
  return double(a.n) / double(a.m);
}

enum class Activation : int32_t { kNone, kRelu, kGelu, kSilu, kRelu6, kHardswish };

// y = activation(x * W^T + bias), x [tokens, in_features], y [tokens, out_features].
template <class T>
struct CallOf {
  const T* x;
  int64_t x_stride;  // elements from one token to the next
  T* y;
  int64_t y_stride;
  const T* bias;  // [out_features] or null
  Activation activation;
};
using LinearCall = CallOf<float>;

// Block rows that a kernel takes up at a time, at most: their spans lie in the scratch.
constexpr int64_t kMostChunkRows = 4096;
// Sums that a kernel keeps between K-tiles, at most: a part of L2.
constexpr int64_t kMostCells = 32 * 1024;
constexpr int64_t kMostFewTokens = 16;  // whose sums, of bfloat16 blocks read unwidened, lie there
constexpr int64_t kMostCursors = kMostCells / 4;  // of as many outputs, for vectors of 4 tokens

// Tokens that kernels of single rows hold at once. More sums hide how long each takes, yet where a
// row has few weights in a K-tile it matters more that they go from and to L2 there.
constexpr int64_t kShortPanel = 96;
constexpr int64_t single_panel(int64_t panel, double density) {
  return density > 0.3 ? panel : min64(panel, kShortPanel);
}

// Tokens that kernels of bfloat16 pack at a time, 8 MiB of them unless rows are very long; the
// weights that they pair anew for each of these batches, 192 KiB at a time or those of a cache line
// of outputs; and the strips of them.
constexpr int64_t pairs_batch(int64_t padded_inputs) {
  return max64(64, min64(256, 4 * 1024 * 1024 / padded_inputs / 64 * 64));
}
constexpr int64_t kMostStrips = 1024;
constexpr int64_t pairs_in_chunk(int64_t padded_inputs) {
  return max64(48 * 1024, 32 * ceil_div(padded_inputs, 2));
}
constexpr int64_t kPairsSlack = 16;  // room for a vector beyond

// The same for kernels of tiles, of whose tokens 1 MiB is packed at a time. A unit of inputs is
// listed once for 16 weights at most, and once more while it is not known whether they fit.
constexpr int64_t whole_tiles(int64_t padded_inputs) { return ceil_div(padded_inputs, 32) * 32; }
constexpr int64_t tiles_batch(int64_t padded_inputs) {
  return max64(64, min64(256, 512 * 1024 / padded_inputs / 64 * 64));
}
constexpr int64_t tile_weights_in_chunk(int64_t tile_inputs) {
  return max64(128 * 1024, 16 * tile_inputs);
}
constexpr int64_t tile_units_in_chunk(int64_t tile_inputs) {
  return tile_weights_in_chunk(tile_inputs) / 16 + tile_inputs + 16;
}
constexpr int64_t dense_weights_of_tiles(int64_t tile_inputs) { return 16 * (tile_inputs + 2); }
constexpr int64_t tile_marks(int64_t tile_inputs) { return ceil_div(tile_inputs, 64) * 64; }

// bfloat16 that the pairs of a K-tile take, at most.
constexpr int64_t kMostExpanded = 16 * 11 * 128;

// One thread's share of a call, and the memory it may use: for spans, and for packed activations.
struct Share {
  int64_t token_begin, token_end;
  int64_t row_begin, row_end;  // bands: block rows, or row tiles
  float* scratch;              // 64-byte aligned
  int64_t scratch_floats;
  int64_t l1_bytes;  // of the core's first data cache
};

// How the loop of a kernel is laid out, which says how many loads its multiply-adds take: vectors
// of outputs, vectors of tokens, vectors of tokens for one output at a time, a single token, or
// vectors of tokens or of outputs with two inputs each and more, or tiles of outputs and inputs.
enum class KernelFamily : int32_t { kOutputs, kTokens, kSingle, kVector, kPairs, kTiles };

// The weight is a BlockMatrixOf or an NMMatrixOf, as the kernel's format says, and the call a
// CallOf, of the kernel's numbers.
using LinearKernel = void (*)(const void* weight, const void* call, const Share*);

}  // namespace sparsekern
