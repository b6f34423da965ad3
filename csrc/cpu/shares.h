// How a call is shared between threads, and the memory that each of them may use. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// At least so many floats of the calling thread's own, 64-byte aligned. They are kept: a call must
// not pay the page faults of fresh memory. Throws std::bad_alloc.
float* thread_scratch(int64_t floats);

// Floats that a kernel needs for its spans or sums, and to pack a share's activations.
int64_t kernel_scratch_floats(const KernelInfo& kernel, int64_t padded_inputs, int64_t tokens,
                              int64_t bands);

// Threads worth waking: below some microseconds of work each, one thread alone is faster.
int64_t useful_threads(int64_t weights, int64_t tokens, int64_t threads);

// A grid of shares: the tokens are cut evenly, the bands of outputs by their weights.
// Tokens are cut first: it balances whatever the pattern, and no activation is packed twice. A part
// has a full panel of tokens, or 64.
struct Grid {
  int64_t token_parts, band_parts;

  Grid(int64_t tokens, int64_t panel, int64_t threads);
};

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

// Calls body(share), the share still without scratch, for all shares of a product with `a`.
template <class Matrix, class Body>
void for_each_share(const KernelInfo& kernel, const Matrix& a, int64_t tokens, int64_t threads,
                    ParallelFor parallel_for, const Body& body) {
  if (tokens == 0) return;
  struct Task {
    const Matrix& a;
    const Body& body;
    int64_t tokens;
    Grid grid;
  } task{a, body, tokens, Grid(tokens, kernel.panel, useful_threads(a.stored(), tokens, threads))};

  parallel_for(
      task.grid.token_parts * task.grid.band_parts,
      [](int64_t part, void* context) {
        const Task& t = *static_cast<const Task*>(context);
        const int64_t token_part = part % t.grid.token_parts, band_part = part / t.grid.token_parts;
        Share share{};
        share.token_begin = t.tokens * token_part / t.grid.token_parts;
        share.token_end = t.tokens * (token_part + 1) / t.grid.token_parts;
        share.row_begin = band_boundary(t.a, band_part, t.grid.band_parts);
        share.row_end = band_part + 1 == t.grid.band_parts
                            ? t.a.bands()
                            : band_boundary(t.a, band_part + 1, t.grid.band_parts);
        if (share.row_begin < share.row_end) t.body(share);
      },
      &task);
}

}  // namespace sparsekern
