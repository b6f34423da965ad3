// What the kernels of few tokens have in common, and into how many parts the host cuts their
// strips. A strip is what outputs a thread block makes, a slice the inputs that a warp takes in one
// step.
#pragma once

#include <stdint.h>

#include "cuda/block_product.h"
#include "cuda/call.h"
#include "cuda/kernel.h"
#include "cuda/nm_product.h"

namespace sparsekern::cuda {

constexpr int kDecodeWarps = 8, kDecodeStages = 4;  // of each warp's pipeline
constexpr int kDecodeTokens = 16;                   // of a thread block, at most
constexpr int kDecodeRowTiles = 2;                  // of a strip of 2:4

// Adds up what the thread blocks of a split left, for each number in the order of the parts, and
// writes y.
cudaError_t launch_add_partials(const Call& call, Number number, cudaStream_t stream);

struct Gpu {
  int processors;       // its SMs
  double bytes_per_ns;  // out of its memory
};

struct Strips {
  int64_t count;    // each as often as there are tiles of tokens
  int64_t slices;   // of one, on average
  int slice_bytes;  // of weights
  int64_t outputs;  // of all, with what pads the last one
  int64_t tokens;
};

// `blocks`: that the weight has.
inline Strips strips_of(const BlockProduct<false>& p, int64_t blocks, int height) {
  const int64_t strips = int64_t{p.groups} * p.strips, tokens = p.call.tokens;
  return {strips * ceil_div(tokens, kDecodeTokens), blocks * (p.weight.cols / 16) / p.groups,
          height * 16 * 2, strips * height, tokens};
}

inline Strips strips_of(const NMProduct& p) {
  const int64_t strips = ceil_div(p.row_tiles, kDecodeRowTiles), tokens = p.call.tokens;
  constexpr int kSliceBytes =
      kDecodeRowTiles * int(NMProduct::kValuesBytes + NMProduct::kPositionsBytes);
  return {strips * ceil_div(tokens, kDecodeTokens), p.group_tiles, kSliceBytes,
          strips * kDecodeRowTiles * NMProduct::kTileOutputs, tokens};
}

// A model, not a measurement, of how long the product takes if `parts` thread blocks share a strip
// and its weights lie in memory. Either warps wait for answers of the memory, with all but one of
// their stages under way; or the memory gives what it can, also to partial sums, which are written
// and read. The second kernel, in a CUDA graph, costs its start and two answers.
inline double decode_ns(const Strips& strips, const Gpu& gpu, int64_t parts) {
  constexpr double kAnswerNs = 800, kSecondKernelNs = 2000;
  const double steps = double(ceil_div(strips.slices, kDecodeWarps * parts));
  const double answers = steps / (kDecodeStages - 1);
  const double waiting = kAnswerNs * (answers < 1 ? 1 : answers);
  const double weights = double(strips.count) * double(strips.slices) * strips.slice_bytes;
  const double partials = double(parts) * double(strips.outputs) * double(strips.tokens) * 4 * 2;
  const double moving = (weights + (parts > 1 ? partials : 0)) / gpu.bytes_per_ns;
  return (waiting > moving ? waiting : moving) + (parts > 1 ? kSecondKernelNs : 0);
}

// The parts that a strip is cut into: the fewest for which the model takes least, and no more than
// run at once. 48 KiB are then under way on an SM, 60 bytes for each ns that an answer takes: more
// than any memory has for it. Each warp is to fill its pipeline.
inline int parts_of_strips(const Strips& strips, const Gpu& gpu) {
  const int64_t thread_blocks = gpu.processors * ceil_div(2048, strips.slice_bytes);
  const int64_t fit = thread_blocks / max64(1, strips.count);
  const int64_t most = min64(fit, strips.slices / (kDecodeWarps * kDecodeStages));
  int best = 1;
  for (int parts = 2; parts <= most; ++parts) {
    if (decode_ns(strips, gpu, parts) < decode_ns(strips, gpu, best)) best = parts;
  }
  return best;
}

}  // namespace sparsekern::cuda
