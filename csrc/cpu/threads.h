// What every call shares between threads by: how many are worth it, how bands are cut, and memory
// that each thread keeps.
#pragma once

#include "core/view.h"

namespace sparsekern {

// Runs body(0) ... body(parts - 1), on several threads or not.
using ParallelFor = void (*)(int64_t parts, void (*body)(int64_t part, void* context),
                             void* context);

// At least so many floats, 64-byte aligned, until this thread asks again. It grows as needed and is
// kept: a call must not pay the page faults of fresh memory.
float* thread_scratch(int64_t floats);

// Threads worth waking for a product of so many stored weights and tokens: below some microseconds
// of work each, one thread alone is faster.
int64_t useful_threads(int64_t weights, int64_t tokens, int64_t threads);

// First band before which part / parts of the work lies.
template <class Matrix>
int64_t band_boundary(const Matrix& a, int64_t part, int64_t parts) {
  const int64_t goal = a.cost_before(a.bands()) * part / parts;
  int64_t low = 0, high = a.bands();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (a.cost_before(middle) < goal) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace sparsekern
