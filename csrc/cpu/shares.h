// How a product is shared between threads, and the memory that its kernels need. Free of torch.
#pragma once

#include "cpu/dispatch.h"

namespace sparsekern {

// Floats that a kernel needs for its spans or sums, and to pack a share's activations.
int64_t kernel_scratch_floats(const KernelInfo& kernel, int64_t padded_inputs, int64_t tokens,
                              int64_t bands);

// A grid of shares: the tokens are cut evenly, the bands of outputs by their weights. A part has a
// full panel of tokens, or 64 (not for dense single rows), or all.
// Tokens are cut first: it balances whatever the pattern, and no activation is packed twice.
// Kernels of tiles make these of their weights for each part, so there the grid is chosen whose
// parts have the least to pack and to make.
struct Grid {
  int64_t token_parts, band_parts;

  Grid(const KernelInfo& kernel, int64_t stored, double density, int64_t padded_inputs,
       int64_t tokens, int64_t threads);
};

// Bands of so many outputs that a share takes together. Kernels of tiles treat the block rows of a
// strip as one: cut within it, sums would depend on the number of threads.
constexpr int64_t bands_together(const KernelInfo& kernel, int64_t band_outputs) {
  if (kernel.family != KernelFamily::kTiles) return 1;
  return kernel.outputs / min64(kernel.outputs, band_outputs & -band_outputs);
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
    int64_t together;
  } task{a, body, tokens,
         Grid(kernel, a.stored(), density_of(a), a.padded_in_features(), tokens,
              useful_threads(a.stored(), tokens, threads)),
         bands_together(kernel, a.band_outputs())};

  parallel_for(
      task.grid.token_parts * task.grid.band_parts,
      [](int64_t part, void* context) {
        const Task& t = *static_cast<const Task*>(context);
        const int64_t token_part = part % t.grid.token_parts, band_part = part / t.grid.token_parts;
        Share share{};
        share.l1_bytes = l1_data_bytes();
        share.token_begin = t.tokens * token_part / t.grid.token_parts;
        share.token_end = t.tokens * (token_part + 1) / t.grid.token_parts;
        const auto boundary = [&](int64_t part) {
          const int64_t band = band_boundary(t.a, part, t.grid.band_parts);
          return min64(t.a.bands(), ceil_div(band, t.together) * t.together);
        };
        share.row_begin = boundary(band_part);
        share.row_end = band_part + 1 == t.grid.band_parts ? t.a.bands() : boundary(band_part + 1);
        if (share.row_begin < share.row_end) t.body(share);
      },
      &task);
}

}  // namespace sparsekern
