// Runs every kernel of the instruction sets named as arguments against float64, each array in a
// heap block of its exact size. Built with tests/native/emulated first on the include path it needs
// no CPU with these instructions, and sanitizers see each lane of each load and store.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cpu_info.h"
#include "cpu/dispatch.h"
#include "cpu/shares.h"
#include "emulated/tiles.h"
#include "emulated_expected.h"

// The kernels of gradients and of convolutions: tests/native/emulated_grads.cpp,
// emulated_convs.cpp. Both add to the counts.
void run_grads(const char* isa, int& runs, int& failures);
void run_convs(const char* isa, int& runs, int& failures);

namespace {

template <class Matrix>
void run_matrix(const KernelInfo& kernel, const Matrix& a, int64_t, const CallOf<float>& call,
                int64_t tokens, int64_t threads) {
  run_linear(kernel, a, call, tokens, threads, on_threads);
}

template <class Matrix>
void run_matrix(const KernelInfo& kernel, const Matrix& a, int64_t stored,
                const CallOf<BFloat16>& call, int64_t tokens, int64_t threads) {
  Exact<BFloat16> values(stored);
  for (int64_t i = 0; i < stored; ++i) values[i] = narrowed<BFloat16>(a.values[i]);
  run_linear(kernel, with_values(a, values.data), call, tokens, threads, on_threads);
}

// As on a CPU with a first cache of that size.
template <class Matrix>
void run_with_cache(const KernelInfo& kernel, const Matrix& a, const LinearCall& call,
                    int64_t tokens, int64_t l1_bytes) {
  for_each_share(kernel, a, tokens, 1, on_threads, [&](Share share) {
    share.l1_bytes = l1_bytes;
    share.scratch_floats = kernel_scratch_floats(kernel, a.padded_in_features(), tokens,
                                                 share.row_end - share.row_begin);
    share.scratch = thread_scratch(share.scratch_floats);
    kernel.run(&a, &call, &share);
  });
}

template <class T>
void run(const KernelInfo& kernel, const Weight& weight, CallOf<T> call, const Case& c,
         int64_t threads, Exact<T>& y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = narrowed<T>(kUntouched);
  call.y = y.data;
  if (kernel.format == Format::kNM) {
    run_matrix(kernel, weight.nm, weight.nm.stored(), call, c.tokens, threads);
  } else {
    run_matrix(kernel, weight.view, weight.view.stored(), call, c.tokens, threads);
  }
}

template <class T>
bool passes(const KernelInfo& kernel, const Case& c) {
  const Weight weight(kernel.format, c);
  const int64_t x_stride = c.inputs + c.x_gap, y_stride = c.outputs + c.y_gap;
  const int64_t x_size = c.tokens == 0 ? 0 : (c.tokens - 1) * x_stride + c.inputs;
  const int64_t y_size = c.tokens == 0 ? 0 : (c.tokens - 1) * y_stride + c.outputs;
  Exact<T> x(x_size), bias(c.outputs), y(y_size), y_of_threads(y_size);
  for (int64_t i = 0; i < x_size; ++i) x[i] = narrowed<T>(uniform());
  for (int64_t i = 0; i < c.outputs; ++i) bias[i] = narrowed<T>(uniform());
  const CallOf<T> call{x.data,      x_stride, nullptr, y_stride, c.bias ? bias.data : nullptr,
                       c.activation};
  // As another library may have shaped the tiles of this thread, and finds them again.
  uint8_t (&config)[64] = emulated_tiles().config;
  std::memset(config, 7, sizeof config);
  run(kernel, weight, call, c, 1, y, y_size);
  run(kernel, weight, call, c, 3, y_of_threads, y_size);
  for (const uint8_t byte : config) {
    if (byte == 7) continue;
    std::printf("tiles are left in another shape: ");
    return false;
  }
  if (y_size > 0 && std::memcmp(y.data, y_of_threads.data, y_size * sizeof(T)) != 0) {
    std::printf("three threads give other bits: ");
    return false;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    for (const int64_t l1_bytes : {16 * 1024, 128 * 1024}) {
      if (kernel.family != KernelFamily::kSingle) break;
      for (int64_t i = 0; i < y_size; ++i) y_of_threads[i] = kUntouched;
      LinearCall other = call;
      other.y = y_of_threads.data;
      if (kernel.format == Format::kNM) {
        run_with_cache(kernel, weight.nm, other, c.tokens, l1_bytes);
      } else {
        run_with_cache(kernel, weight.view, other, c.tokens, l1_bytes);
      }
      if (y_size == 0 || std::memcmp(y.data, y_of_threads.data, y_size * sizeof(T)) == 0) continue;
      std::printf("another size of L1 gives other bits: ");
      return false;
    }
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t n = 0; n < y_stride && t * y_stride + n < y_size; ++n) {
      const float got = widened(y[t * y_stride + n]);
      if (n >= c.outputs) {
        if (got == kUntouched) continue;
        std::printf("y written between its rows at [%d][%d]: ", int(t), int(n));
        return false;
      }
      double sum = c.bias ? widened(bias[n]) : 0.0, magnitude = std::fabs(sum);
      int64_t terms = 4;
      for (int64_t k = 0; k < c.inputs; ++k) {
        const double term = double(widened(x[t * x_stride + k])) * weight.dense[n * c.inputs + k];
        sum += term;
        magnitude += std::fabs(term);
        terms += weight.stored[n * c.inputs + k];
      }
      if (!is_near<T>(got, sum, magnitude, terms, c.activation)) {
        std::printf("y[%d][%d] = %.9g, not %.9g: ", int(t), int(n), got,
                    activate(sum, c.activation));
        return false;
      }
    }
  }
  return true;
}

std::vector<Case> cases_for(const KernelInfo& kernel) {
  const int64_t kTokens[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,
                             15, 16, 17, 20, 21, 24, 25, 31, 32, 33, 47, 48, 49, 120};
  std::vector<Case> cases;
  int turn = 0;
  const auto add = [&](int64_t rows, int64_t cols, int64_t outputs, int64_t inputs, int64_t tokens,
                       double density, int64_t x_gap) {
    ++turn;
    cases.push_back({rows, cols, outputs, inputs, tokens, x_gap, turn % 5 == 0 ? 3 : 0, density,
                     turn % 3 != 0, static_cast<Activation>(turn % 4)});
  };
  if (kernel.format == Format::kNM) {
    const int64_t kPatterns[][2] = {{2, 4}, {1, 4}, {4, 8}, {8, 16}, {1, 2}, {3, 5}, {2, 17}};
    for (const auto& [n, m] : kPatterns) {
      for (const int64_t tokens : kTokens) {
        add(n, m, 21, 9 * m + m / 2 + 1, tokens, 0, turn % 4);
      }
      add(n, m, 40, 1200, 70, 0, 0);
      add(n, m, 100, 700, 1, 0, 0);
      add(n, m, 130, 1300, 258, 0, 0);  // several batches of tokens, and chunks of weights
    }
    for (int64_t outputs = 1; outputs <= 34; ++outputs) {
      for (int i = 0; i < 4; ++i) {
        const auto& [n, m] = kPatterns[i];
        add(n, m, outputs, m + 3 * outputs, 1 + outputs % 26, 0, outputs % 3);
      }
    }
    return cases;
  }
  for (int64_t factor = 1; factor <= (kernel.multiple ? 3 : 1); ++factor) {
    const int64_t rows = kernel.rows * factor;
    for (const int64_t cols : {1, 2, 3, 17}) {
      for (const int64_t tokens : kTokens) {
        add(rows, cols, 2 * rows, 2 * cols + 16, tokens, 0.6, 0);
        add(rows, cols, rows + 1 + turn % rows, 37, tokens, 0.4, turn % 4);
      }
    }
    for (int64_t outputs = 1; outputs <= rows + 1; ++outputs) {
      add(rows, 1, outputs, 9, 1 + outputs % 26, 0.8, 0);
    }
    for (int64_t inputs = 1; inputs <= 34; ++inputs) {
      add(rows, 1 + inputs % 5, rows, inputs, 1 + inputs % 26, 0.8, inputs % 3);
    }
  }
  // Several K-tiles; rows 4 KiB apart; an empty weight; enough work for several threads.
  for (const int64_t tokens : {1, 3, 5, 13, 16, 50}) {
    for (const double density : {0.0, 0.1, 0.4}) {
      add(kernel.rows, 1, kernel.rows + 3, 3200, tokens, density, 0);
      add(kernel.rows, 3, kernel.rows, 1700, tokens, density, 2);
      add(kernel.rows, 1, kernel.rows, 1000, tokens, density, 24);
    }
  }
  // Tiles of several chunks; a block that is larger than a chunk.
  add(kernel.rows, 1, 720, 2400, 13, 0.16, 0);
  add(kernel.rows, 1, kernel.rows + 1, 8500, 2, 0.4, 0);
  add(kernel.rows, 68000 / kernel.rows, kernel.rows + 1, 70000 / kernel.rows, 3, 1, 0);
  // One token with work for two threads; streams of several columns, and with empty rows.
  add(kernel.rows, 1, 130, 1600, 1, 0.9, 0);
  add(kernel.rows, 3, 9 * kernel.rows - 1, 64, 1, 0.5, 0);
  add(kernel.rows, 1, 40 * kernel.rows, 3, 1, 0.3, 0);
  add(kernel.rows, 1, 6 * kernel.rows + 1, 700, 61, 0.9, 1);
  add(kernel.rows, 2, 40 * kernel.rows, 700, 3, 0.9, 0);
  // Several batches of tokens, and chunks of weights.
  add(kernel.rows, 1, 130, 900, 258, 0.9, 0);
  add(kernel.rows, 2, 130, 900, 258, 0.9, 3);
  // Chunks that end within a block row, where the kernel runs taller blocks than its own.
  add(kernel.multiple ? 3 * kernel.rows : kernel.rows, 1, 1000, 700, 13, 0.4, 0);
  // More strips side by side than are taken together.
  if (kernel.multiple) add(11 * kernel.rows, 1, 12 * kernel.rows + 3, 300, 13, 0.4, 0);
  // Few inputs in a strip of outputs; wide blocks, most of them empty.
  add(kernel.rows, 1, 6 * kernel.rows + 3, 300, 70, 0.08, 0);
  add(kernel.rows, 2, 6 * kernel.rows + 3, 300, 40, 0.08, 0);
  add(kernel.rows, 40, 6 * kernel.rows + 3, 700, 70, 0.3, 1);
  return cases;
}

}  // namespace

int main(int count, char** names) {
  // Looks at this CPU, and asks Linux for tiles: without emulation they are real ones.
  isa_supported(Isa::kPortable);
  int table_size = 0, failures = 0, runs = 0;
  const KernelInfo* table = kernel_table(&table_size);
  for (int i = 0; i < table_size; ++i) {
    const KernelInfo& kernel = table[i];
    bool wanted = false;
    for (int n = 1; n < count; ++n) wanted |= std::strcmp(names[n], isa_name(kernel.isa)) == 0;
    if (!wanted) continue;
    for (const Case& c : cases_for(kernel)) {
      for (const bool wide : {true, false}) {
        if (wide && kernel.numbers == Numbers::kBFloat16) continue;
        ++runs;
        if (wide ? passes<float>(kernel, c) : passes<BFloat16>(kernel, c)) continue;
        ++failures;
        std::printf(
            "%s, %s, blocks (or n:m) %dx%d, weight %dx%d, %d tokens, gaps %d and %d, density %g, "
            "bias %d, activation %d\n",
            kernel.name, wide ? "float32" : "bfloat16", int(c.rows), int(c.cols), int(c.outputs),
            int(c.inputs), int(c.tokens), int(c.x_gap), int(c.y_gap), c.density, int(c.bias),
            int(c.activation));
      }
    }
  }
  for (int n = 1; n < count; ++n) {
    run_grads(names[n], runs, failures);
    run_convs(names[n], runs, failures);
  }
  std::printf("%d cases, %d failures\n", runs, failures);
  return failures == 0 && runs > 0 ? 0 : 1;
}
