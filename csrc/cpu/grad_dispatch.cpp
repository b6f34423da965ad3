#include "cpu/grad_dispatch.h"

#include <cstring>

#include "cpu/table.h"

#define SPARSEKERN_GRAD_KERNEL(name, op, format, isa, rows, multiple, panel)         \
  extern "C" void sparsekern_##name(const void* weight, const sparsekern::GradCall*, \
                                    const sparsekern::GradShare*);
#include "cpu/grad_kernels.inc"
#undef SPARSEKERN_GRAD_KERNEL

namespace sparsekern {
namespace {

#define SPARSEKERN_GRAD_KERNEL(name, op, format, isa, rows, multiple, panel) \
  {#name, GradOp::op, Format::format, Isa::isa,                              \
   rows,  multiple,   panel,          SPARSEKERN_SYMBOL_##isa(name)},
constexpr GradKernelInfo kTable[] = {
#include "cpu/grad_kernels.inc"
};
#undef SPARSEKERN_GRAD_KERNEL
constexpr int kTableSize = sizeof(kTable) / sizeof(kTable[0]);

// Floats of a share: cursors, then a panel's rows of inputs and of outputs (grad_input.inl.h,
// grad_values.inl.h).
template <class Matrix>
int64_t scratch_floats(const GradKernelInfo& kernel, const Matrix& a) {
  const int64_t height = a.band_outputs();
  int64_t inputs = a.padded_in_features(), outputs = a.bands() * height;
  if (kernel.op == GradOp::kValues) {
    inputs = min64(inputs, max64(kGradTileInputs, a.input_quantum()));
    outputs = min64(outputs, max64(kMostGradOutputs, height));
  }
  return ceil_div(a.bands(), 16) * 16 +
         kernel.panel * (inputs + outputs + 2 * (kGradOutputs + height));
}

template <class Matrix>
struct Task {
  const GradKernelInfo& kernel;
  const Matrix& a;
  const GradCall& call;
  int64_t token_begin, token_end, parts;

  // All of it, with this thread's memory.
  GradShare whole() const {
    GradShare share;
    share.token_begin = token_begin;
    share.token_end = token_end;
    share.band_begin = share.input_begin = 0;
    share.band_end = a.bands();
    share.input_end = a.padded_in_features();
    share.first = token_begin == 0;
    float* const memory = thread_scratch(scratch_floats(kernel, a));
    share.cursors = reinterpret_cast<int32_t*>(memory);
    share.scratch = memory + ceil_div(a.bands(), 16) * 16;
    return share;
  }

  // Whole vectors of tokens, the widest of which has 16.
  void run_tokens(int64_t part) const {
    const int64_t quanta = ceil_div(token_end, 16);
    GradShare share = whole();
    share.token_begin = min64(token_end, quanta * part / parts * 16);
    share.token_end = min64(token_end, quanta * (part + 1) / parts * 16);
    if (share.token_begin < share.token_end) kernel.run(&a, &call, &share);
  }

  // Along the longer side: the operand along the other one is transposed by every thread.
  void run_values(int64_t part) const {
    GradShare share = whole();
    if (a.out_features >= a.in_features) {
      share.band_begin = band_boundary(a, part, parts);
      if (part + 1 < parts) share.band_end = band_boundary(a, part + 1, parts);
    } else {
      const int64_t quantum = a.input_quantum(), quanta = a.padded_in_features() / quantum;
      share.input_begin = quanta * part / parts * quantum;
      share.input_end = quanta * (part + 1) / parts * quantum;
    }
    if (share.band_begin < share.band_end && share.input_begin < share.input_end) {
      kernel.run(&a, &call, &share);
    }
  }
};

template <class Matrix>
void run(const GradKernelInfo& kernel, const Matrix& a, const GradCall& call, int64_t tokens,
         int64_t threads, ParallelFor parallel_for) {
  const int64_t parts = useful_threads(a.stored(), tokens, threads);
  if (kernel.op == GradOp::kInput) {
    if (tokens == 0) return;
    Task<Matrix> task{kernel, a, call, 0, tokens, min64(parts, ceil_div(tokens, 16))};
    return parallel_for(
        task.parts,
        [](int64_t part, void* context) { static_cast<Task<Matrix>*>(context)->run_tokens(part); },
        &task);
  }
  if (tokens == 0) std::memset(call.out, 0, a.stored() * sizeof(float));
  const int64_t chunks = ceil_div(tokens, kGradTokens), quanta = ceil_div(tokens, 16);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Task<Matrix> task{kernel,
                      a,
                      call,
                      quanta * chunk / chunks * 16,
                      min64(tokens, quanta * (chunk + 1) / chunks * 16),
                      parts};
    parallel_for(
        parts,
        [](int64_t part, void* context) { static_cast<Task<Matrix>*>(context)->run_values(part); },
        &task);
  }
}

}  // namespace

const GradKernelInfo* grad_kernel_table(int* count) {
  *count = kTableSize;
  return kTable;
}

const GradKernelInfo* choose_grad_kernel(GradOp op, Format format, int64_t block_rows) {
  for (const GradKernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && kernel.takes(op, format, block_rows)) return &kernel;
  }
  return nullptr;
}

const GradKernelInfo* find_grad_kernel(const char* name) { return find_named(kTable, name); }

void run_grad(const GradKernelInfo& kernel, const BlockMatrix& a, const GradCall& call,
              int64_t tokens, int64_t threads, ParallelFor parallel_for) {
  run(kernel, a, call, tokens, threads, parallel_for);
}

void run_grad(const GradKernelInfo& kernel, const NMMatrix& a, const GradCall& call, int64_t tokens,
              int64_t threads, ParallelFor parallel_for) {
  run(kernel, a, call, tokens, threads, parallel_for);
}

}  // namespace sparsekern
