#include "cpu/dispatch.h"

#include <cstring>

#if defined(__x86_64__)
#define SPARSEKERN_ON_X86(kernel) kernel
#else
#define SPARSEKERN_ON_X86(kernel) nullptr
#endif

#define SPARSEKERN_KERNEL(name, format, isa, rows, multiple, min_tokens, panel)        \
  extern "C" void sparsekern_##name(const void* weight, const sparsekern::LinearCall*, \
                                    const sparsekern::Share*);
#include "cpu/kernels.inc"
#undef SPARSEKERN_KERNEL

namespace sparsekern {
namespace {

#define SPARSEKERN_SYMBOL_kPortable(name) sparsekern_##name
#define SPARSEKERN_SYMBOL_kAvx2(name) SPARSEKERN_ON_X86(sparsekern_##name)
#define SPARSEKERN_SYMBOL_kAvx512(name) SPARSEKERN_ON_X86(sparsekern_##name)
#define SPARSEKERN_KERNEL(name, format, isa, rows, multiple, min_tokens, panel) \
  {#name,    Format::format, Isa::isa, rows,                                    \
   multiple, min_tokens,     panel,    SPARSEKERN_SYMBOL_##isa(name)},
constexpr KernelInfo kTable[] = {
#include "cpu/kernels.inc"
};
#undef SPARSEKERN_KERNEL
constexpr int kTableSize = sizeof(kTable) / sizeof(kTable[0]);

constexpr int64_t kBatchFloats = 1 << 20;  // packed activations of a batch: 4 MiB a thread
// Spans or sums with their cursors, and the padding of rows.
constexpr int64_t kFixedFloats = max64(2 * kMostChunkRows, kMostCells + kMostCursors) + 8 * 1024;

// A grid of shares: the tokens are cut evenly, the bands of outputs by their weights.
// Tokens are cut first: it balances whatever the pattern, and no activation is packed twice. A part
// has a full panel of tokens, or 64.
struct Grid {
  int64_t token_parts, band_parts;

  Grid(int64_t tokens, int64_t panel, int64_t threads) {
    token_parts = threads;
    while (token_parts > 1 &&
           (threads % token_parts != 0 || tokens < token_parts * min64(panel, 64))) {
      --token_parts;
    }
    band_parts = threads / token_parts;
  }
};

template <class Matrix>
void run_shares(const KernelInfo& kernel, const Matrix& a, const LinearCall& call, int64_t tokens,
                int64_t threads, ParallelFor parallel_for) {
  if (tokens == 0) return;
  struct Task {
    const KernelInfo& kernel;
    const Matrix& a;
    const LinearCall& call;
    int64_t tokens;
    Grid grid;
  } task{kernel, a, call, tokens,
         Grid(tokens, kernel.panel, useful_threads(a.stored(), tokens, threads))};

  parallel_for(
      task.grid.token_parts * task.grid.band_parts,
      [](int64_t part, void* context) {
        const Task& t = *static_cast<const Task*>(context);
        const int64_t token_part = part % t.grid.token_parts, band_part = part / t.grid.token_parts;
        Share share;
        share.token_begin = t.tokens * token_part / t.grid.token_parts;
        share.token_end = t.tokens * (token_part + 1) / t.grid.token_parts;
        share.row_begin = band_boundary(t.a, band_part, t.grid.band_parts);
        share.row_end = band_part + 1 == t.grid.band_parts
                            ? t.a.bands()
                            : band_boundary(t.a, band_part + 1, t.grid.band_parts);
        if (share.row_begin == share.row_end) return;
        const int64_t inputs = t.a.padded_in_features();
        const int64_t tokens = share.token_end - share.token_begin;
        const int64_t panels = ceil_div(tokens, t.kernel.panel);
        const int64_t panel_floats = inputs * min64(t.kernel.panel, ceil_div(tokens, 16) * 16);
        share.scratch_floats = kFixedFloats + (share.row_end - share.row_begin) +
                               max64(panel_floats, min64(panels * panel_floats, kBatchFloats));
        share.scratch = thread_scratch(share.scratch_floats);
        t.kernel.run(&t.a, &t.call, &share);
      },
      &task);
}

}  // namespace

const KernelInfo* kernel_table(int* count) {
  *count = kTableSize;
  return kTable;
}

const KernelInfo* choose_kernel(Format format, int64_t block_rows, int64_t tokens) {
  for (const KernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && kernel.takes(format, block_rows) &&
        tokens >= kernel.min_tokens) {
      return &kernel;
    }
  }
  return nullptr;
}

const KernelInfo* find_kernel(const char* name) {
  for (const KernelInfo& kernel : kTable) {
    if (std::strcmp(kernel.name, name) == 0) return &kernel;
  }
  return nullptr;
}

void run_linear(const KernelInfo& kernel, const BlockMatrix& a, const LinearCall& call,
                int64_t tokens, int64_t threads, ParallelFor parallel_for) {
  run_shares(kernel, a, call, tokens, threads, parallel_for);
}

void run_linear(const KernelInfo& kernel, const NMMatrix& a, const LinearCall& call, int64_t tokens,
                int64_t threads, ParallelFor parallel_for) {
  run_shares(kernel, a, call, tokens, threads, parallel_for);
}

}  // namespace sparsekern
