// For CPUs whose dot products of bfloat16 do not exist or do not fit: the numbers are widened in
// cache, where the float32 kernels find them. Memory is read and written at two bytes a number.
//
//   for a batch of tokens:           widen its rows of x
//     for a chunk of bands:          widen its weights, which then stay in L2 or near it
//                                    the float32 kernel, on this part of the weight
//                                    round its outputs into y
#include "cpu/bfloat16.h"

#include <cstring>

#include "cpu/shares.h"

namespace sparsekern {
namespace {

// A chunk of weights is widened anew for each batch, which must be long enough to make up for it,
// and inputs are packed anew for each chunk. A single token is not packed: what counts then are the
// passes of a chunk through the cache.
constexpr int64_t kBatchTokens = 256;
constexpr int64_t kChunkWeights = 256 * 1024;
constexpr int64_t kChunkOutputs = 4096;
constexpr int64_t kChunkWeightsForOne = 48 * 1024;

constexpr int64_t kLine = 16;    // floats of a cache line
constexpr int64_t kAhead = 512;  // weights by which memory is asked ahead

// Rows of an odd number of cache lines do not compete for the same cache sets.
int64_t row_floats(int64_t count) { return (ceil_div(count, kLine) | 1) * kLine; }
int64_t whole_lines(int64_t count) { return ceil_div(count, kLine) * kLine; }

void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].bits) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

// The same, along four streams at once: a core has more reads of memory under way along four than
// along one.
void widen_from_memory(const BFloat16* from, int64_t count, float* to) {
  constexpr int64_t kStep = 64;  // two cache lines
  const int64_t quarter = count / (4 * kStep) * kStep;
  for (int64_t i = 0; i < quarter; i += kStep) {
    for (int64_t stream = 0; stream < 4; ++stream) {
      const int64_t at = stream * quarter + i;
      __builtin_prefetch(from + at + kAhead);
      __builtin_prefetch(from + at + kAhead + kStep / 2);
      widen(from + at, kStep, to + at);
    }
  }
  widen(from + 4 * quarter, count - 4 * quarter, to + 4 * quarter);
}

// To nearest, ties to even; a NaN stays one, quiet.
void narrow(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[i].bits = static_cast<uint16_t>(from[i] != from[i] ? (bits >> 16) | 0x40 : rounded);
  }
}

// Bands [begin, end), of `outputs`, as a weight of its own, of which `values` are widened and the
// `offsets` [bands + 1] are counted from its beginning.
BlockMatrix part_of(const BlockMatrixOf<BFloat16>& a, int64_t begin, int64_t end, int64_t outputs,
                    const float* values, int32_t* offsets) {
  for (int64_t row = begin; row <= end; ++row) {
    offsets[row - begin] = a.offsets[row] - a.offsets[begin];
  }
  return {values,   a.columns + a.offsets[begin], offsets, outputs, a.in_features, a.rows, a.cols,
          a.density};
}

NMMatrix part_of(const NMMatrixOf<BFloat16>& a, int64_t begin, int64_t, int64_t outputs,
                 const float* values, int32_t*) {
  const int64_t bits_before = a.stored_before(begin) * a.position_bits();
  return {values, a.positions + bits_before / 8, outputs, a.in_features, a.n, a.m};
}

// First band beyond those from `begin` on, one at least, that fill a chunk.
template <class Matrix>
int64_t chunk_end(const Matrix& a, int64_t begin, int64_t bands_end, int64_t weights) {
  const int64_t most = min64(bands_end, begin + max64(1, kChunkOutputs / a.band_outputs()));
  int64_t end = begin + 1;
  while (end < most && a.stored_before(end + 1) - a.stored_before(begin) <= weights) ++end;
  return end;
}

// The most that a chunk of the share holds.
struct ChunkSizes {
  int64_t weights = 0, bands = 0, outputs = 0;

  template <class Matrix>
  ChunkSizes(const Matrix& a, const Share& share, int64_t goal) {
    int64_t end;
    for (int64_t begin = share.row_begin; begin < share.row_end; begin = end) {
      end = chunk_end(a, begin, share.row_end, goal);
      weights = max64(weights, a.stored_before(end) - a.stored_before(begin));
      bands = max64(bands, end - begin);
    }
    outputs = bands * a.band_outputs();
  }
};

template <class Matrix>
void run_share(const KernelInfo& kernel, const Matrix& a, const CallOf<BFloat16>& call,
               const Share& share) {
  // Batches are cut evenly: how many tokens one has must not depend on the number of threads, for
  // with few of them sums are taken in another order.
  const int64_t total = share.token_end - share.token_begin;
  const int64_t batches = ceil_div(total, kBatchTokens);
  const int64_t batch_tokens = ceil_div(total, batches);
  const int64_t goal = total == 1 ? kChunkWeightsForOne : kChunkWeights;
  const ChunkSizes most(a, share, goal);

  const int64_t x_stride = row_floats(a.in_features), y_stride = row_floats(most.outputs);
  const int64_t kernel_floats =
      kernel_scratch_floats(kernel, a.padded_in_features(), batch_tokens, most.bands);
  const int64_t sizes[] = {whole_lines(kernel_floats), batch_tokens * x_stride,
                           batch_tokens * y_stride,    whole_lines(most.weights),
                           whole_lines(most.outputs),  whole_lines(most.bands + 1)};
  int64_t floats = 0;
  for (const int64_t size : sizes) floats += size;
  float* const kernel_scratch = thread_scratch(floats);
  float* const x = kernel_scratch + sizes[0];
  float* const y = x + sizes[1];
  float* const weights = y + sizes[2];
  float* const bias = weights + sizes[3];
  int32_t* const offsets = reinterpret_cast<int32_t*>(bias + sizes[4]);

  const LinearCall wide{x, x_stride, y, y_stride, call.bias ? bias : nullptr, call.activation};
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t first = share.token_begin + total * batch / batches;
    const int64_t tokens = share.token_begin + total * (batch + 1) / batches - first;
    for (int64_t t = 0; t < tokens; ++t) {
      widen(call.x + (first + t) * call.x_stride, a.in_features, x + t * x_stride);
    }
    int64_t end;
    for (int64_t begin = share.row_begin; begin < share.row_end; begin = end) {
      end = chunk_end(a, begin, share.row_end, goal);
      const int64_t output = begin * a.band_outputs();
      const int64_t outputs = min64(end * a.band_outputs(), a.out_features) - output;
      const int64_t stored = a.stored_before(begin);
      widen_from_memory(a.values + stored, a.stored_before(end) - stored, weights);
      if (call.bias) widen(call.bias + output, outputs, bias);
      const auto part = part_of(a, begin, end, outputs, weights, offsets);
      const Share all{0, tokens, 0, end - begin, kernel_scratch, kernel_floats, share.l1_bytes};
      kernel.run(&part, &wide, &all);
      for (int64_t t = 0; t < tokens; ++t) {
        narrow(y + t * y_stride, outputs, call.y + (first + t) * call.y_stride + output);
      }
    }
  }
}

}  // namespace

template <template <class> class MatrixOf>
void run_widened(const KernelInfo& kernel, const MatrixOf<BFloat16>& a,
                 const CallOf<BFloat16>& call, int64_t tokens, int64_t threads,
                 ParallelFor parallel_for) {
  for_each_share(kernel, a, tokens, threads, parallel_for,
                 [&](const Share& share) { run_share(kernel, a, call, share); });
}

template void run_widened(const KernelInfo&, const BlockMatrixOf<BFloat16>&,
                          const CallOf<BFloat16>&, int64_t, int64_t, ParallelFor);
template void run_widened(const KernelInfo&, const NMMatrixOf<BFloat16>&, const CallOf<BFloat16>&,
                          int64_t, int64_t, ParallelFor);

}  // namespace sparsekern
