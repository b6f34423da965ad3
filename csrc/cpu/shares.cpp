#include "cpu/shares.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace sparsekern {
namespace {

constexpr int64_t kBatchFloats = 1 << 20;  // packed activations of a batch: 4 MiB a thread
// Spans or sums with their cursors, and the padding of rows.
constexpr int64_t kFixedFloats = max64(2 * kMostChunkRows, kMostCells + kMostCursors) + 8 * 1024;

class Scratch {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      memory_.reset();
      size_ = 0;
      void* fresh = std::aligned_alloc(64, static_cast<size_t>(ceil_div(floats * 4, 64) * 64));
      if (fresh == nullptr) throw std::bad_alloc();
      memory_.reset(static_cast<float*>(fresh));
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float[], Free> memory_;
  int64_t size_ = 0;
};

}  // namespace

float* thread_scratch(int64_t floats) {
  static thread_local Scratch scratch;
  return scratch.reserve(floats);
}

int64_t kernel_scratch_floats(const KernelInfo& kernel, int64_t padded_inputs, int64_t tokens,
                              int64_t bands) {
  const int64_t panels = ceil_div(tokens, kernel.panel);
  const int64_t panel_floats = padded_inputs * min64(kernel.panel, ceil_div(tokens, 16) * 16);
  return kFixedFloats + bands + max64(panel_floats, min64(panels * panel_floats, kBatchFloats));
}

int64_t useful_threads(int64_t weights, int64_t tokens, int64_t threads) {
  constexpr int64_t kCyclesPerThread = 12000;
  const int64_t multiply_add_cycles = weights * tokens / 16;
  const int64_t load_cycles = weights * 4 / 16;
  const int64_t cycles = max64(multiply_add_cycles, load_cycles);
  return max64(1, min64(threads, cycles / kCyclesPerThread));
}

Grid::Grid(int64_t tokens, int64_t panel, int64_t threads) {
  token_parts = threads;
  while (token_parts > 1 &&
         (threads % token_parts != 0 || tokens < token_parts * min64(panel, 64))) {
    --token_parts;
  }
  band_parts = threads / token_parts;
}

}  // namespace sparsekern
