#include "cpu/threads.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace sparsekern {
namespace {

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

int64_t useful_threads(int64_t weights, int64_t tokens, int64_t threads) {
  constexpr int64_t kCyclesPerThread = 12000;
  const int64_t multiply_add_cycles = weights * tokens / 16;
  const int64_t load_cycles = weights * 4 / 16;
  const int64_t cycles = max64(multiply_add_cycles, load_cycles);
  return max64(1, min64(threads, cycles / kCyclesPerThread));
}

}  // namespace sparsekern
