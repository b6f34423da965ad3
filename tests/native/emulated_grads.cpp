// Runs every kernel of gradients against float64, as emulated_kernels.cpp does those of products.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/grad_dispatch.h"
#include "emulated_weight.h"

namespace {

void run(const GradKernelInfo& kernel, const Weight& weight, GradCall call, const Case& c,
         int64_t threads, Exact<float>& out) {
  call.out = out.data;
  if (kernel.format == Format::kNM) {
    run_grad(kernel, weight.nm, call, c.tokens, threads, on_threads);
  } else {
    run_grad(kernel, weight.view, call, c.tokens, threads, on_threads);
  }
}

// Where each stored value stands in the dense matrix; -1 in the padding.
std::vector<int64_t> places(const Weight& weight, Format format, const Case& c) {
  std::vector<int64_t> at;
  const auto add = [&](int64_t n, int64_t k) {
    at.push_back(n < c.outputs && k < c.inputs ? n * c.inputs + k : -1);
  };
  if (format == Format::kBlock) {
    const BlockMatrix& a = weight.view;
    for (int64_t row = 0; row < a.block_rows(); ++row) {
      for (int64_t b = a.offsets[row]; b < a.offsets[row + 1]; ++b) {
        for (int64_t i = 0; i < a.cols * a.rows; ++i) {
          add(row * a.rows + i % a.rows, a.columns[b] * a.cols + i / a.rows);
        }
      }
    }
    return at;
  }
  const NMMatrix& a = weight.nm;
  const int64_t n = a.n, bits = a.position_bits();
  for (int64_t i = 0; i < a.stored(); ++i) {
    const int64_t tile = i / a.tile_values(), in_tile = i % a.tile_values();
    const int64_t g = in_tile / (16 * n), q = in_tile / (4 * n) % 4, half = in_tile / (2 * n) % 2;
    const int64_t pair = in_tile / n % 2, value = in_tile % n;
    const int64_t bit = (((half * 2 + pair) * 4 + q) * n + value) * bits;
    const uint8_t byte = a.positions[(tile * 8 + g) * 2 * n * bits + bit / 8];
    const int64_t group = tile % a.group_tiles() * 8 + q + 4 * half;
    add(tile / a.group_tiles() * 16 + g + 8 * pair,
        group * a.m + ((byte >> (bit % 8)) & ((1 << bits) - 1)));
  }
  return at;
}

bool passes(const GradKernelInfo& kernel, const Case& c) {
  const Weight weight(kernel.format, c);
  const bool of_input = kernel.op == GradOp::kInput;
  const int64_t grad_stride = c.outputs + c.y_gap, x_stride = c.inputs + c.x_gap;
  const auto size = [&](int64_t stride, int64_t row) {
    return c.tokens == 0 ? 0 : (c.tokens - 1) * stride + row;
  };
  const std::vector<int64_t> at = places(weight, kernel.format, c);
  const int64_t out_size = of_input ? c.tokens * c.inputs : int64_t(at.size());
  Exact<float> grad(size(grad_stride, c.outputs)), x(size(x_stride, c.inputs));
  Exact<float> out(out_size), of_threads(out_size);
  for (int64_t i = 0; i < size(grad_stride, c.outputs); ++i) grad[i] = uniform();
  for (int64_t i = 0; i < size(x_stride, c.inputs); ++i) x[i] = uniform();
  const GradCall call{grad.data, grad_stride, of_input ? nullptr : x.data, x_stride, nullptr};
  run(kernel, weight, call, c, 1, out);
  run(kernel, weight, call, c, 3, of_threads);
  if (out_size > 0 && std::memcmp(out.data, of_threads.data, out_size * sizeof(float)) != 0) {
    std::printf("three threads give other bits: ");
    return false;
  }
  for (int64_t i = 0; i < out_size; ++i) {
    double sum = 0, magnitude = 0;
    int64_t terms = 4;
    const auto add = [&](double term) {
      sum += term;
      magnitude += std::fabs(term);
      ++terms;
    };
    if (of_input) {
      const int64_t t = i / c.inputs, k = i % c.inputs;
      for (int64_t n = 0; n < c.outputs; ++n) {
        if (!weight.stored[n * c.inputs + k]) continue;
        add(double(grad[t * grad_stride + n]) * weight.dense[n * c.inputs + k]);
      }
    } else if (at[i] >= 0) {
      const int64_t n = at[i] / c.inputs, k = at[i] % c.inputs;
      for (int64_t t = 0; t < c.tokens; ++t) {
        add(double(grad[t * grad_stride + n]) * x[t * x_stride + k]);
      }
    }
    if (!(std::fabs(out[i] - sum) <= magnitude * double(terms) * std::ldexp(1.01, -24))) {
      std::printf("out[%d] = %.9g, not %.9g: ", int(i), out[i], sum);
      return false;
    }
  }
  return true;
}

std::vector<Case> cases_for(const GradKernelInfo& kernel) {
  std::vector<Case> cases;
  int turn = 0;
  const auto add = [&](int64_t rows, int64_t cols, int64_t outputs, int64_t inputs, int64_t tokens,
                       double density) {
    ++turn;
    cases.push_back({rows, cols, outputs, inputs, tokens, turn % 4, turn % 3, density, false,
                     Activation::kNone});
  };
  const int64_t kTokens[] = {0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 33, 48, 50, 97, 200, 260};
  if (kernel.format == Format::kNM) {
    const int64_t kPatterns[][2] = {{2, 4}, {1, 4}, {4, 8}, {8, 16}, {3, 5}, {2, 17}};
    for (const auto& [n, m] : kPatterns) {
      for (const int64_t tokens : kTokens) add(n, m, 21 + turn % 13, 9 * m + m / 2 + 1, tokens, 0);
    }
    add(2, 4, 40, 1200, 30, 0);
    add(2, 4, 300, 70, 20, 0);
    return cases;
  }
  for (int64_t factor = 1; factor <= 3; ++factor) {
    const int64_t rows = kernel.rows * factor;
    for (const int64_t cols : {1, 2, 5}) {
      for (const int64_t tokens : kTokens) {
        add(rows, cols, rows + 1 + 5 * turn % (2 * rows), 20 + turn % 29, tokens, 0.5);
      }
    }
  }
  for (const double density : {0.0, 0.1, 1.0}) {
    add(kernel.rows, 1, 3 * kernel.rows, 1300, 20, density);
    add(kernel.rows, 3, 70, 90, 20, density);
    add(kernel.rows, 2, 150, 40, 60, density);
  }
  return cases;
}

}  // namespace

void run_grads(const char* isa, int& runs, int& failures) {
  int table_size = 0;
  const GradKernelInfo* table = grad_kernel_table(&table_size);
  for (int i = 0; i < table_size; ++i) {
    const GradKernelInfo& kernel = table[i];
    if (std::strcmp(isa, isa_name(kernel.isa)) != 0) continue;
    for (const Case& c : cases_for(kernel)) {
      ++runs;
      if (passes(kernel, c)) continue;
      ++failures;
      std::printf(
          "%s, blocks (or n:m) %dx%d, weight %dx%d, %d tokens, gaps %d and %d, density %g\n",
          kernel.name, int(c.rows), int(c.cols), int(c.outputs), int(c.inputs), int(c.tokens),
          int(c.x_gap), int(c.y_gap), c.density);
    }
  }
}
