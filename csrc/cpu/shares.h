// How a product is shared between threads, and the memory that its kernels need. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// Floats that a kernel needs for its spans or sums, and to pack a share's activations.
int64_t kernel_scratch_floats(const KernelInfo& kernel, int64_t padded_inputs, int64_t tokens,
                              int64_t bands);

// A grid of shares: the tokens are cut evenly, the bands of outputs by their weights.
// Tokens are cut first: it balances whatever the pattern, and no activation is packed twice. A part
// has a full panel of tokens, or 64.
struct Grid {
  int64_t token_parts, band_parts;

  Grid(int64_t tokens, int64_t panel, int64_t threads);
};

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
