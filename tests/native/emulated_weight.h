// Packed matrices for the programs that run kernels without Python, each array in a heap block of
// its exact size.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/view.h"

using namespace sparsekern;

inline std::mt19937 generator(0);

inline float widened(float x) { return x; }
inline float widened(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// The upper half of a float: exact if that is a bfloat16.
template <class T>
T narrowed(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return {uint16_t(bits >> 16)};
  }
}

// In [-1, 1], and a bfloat16, so that one product is expected of both dtypes.
inline float uniform() {
  return widened(narrowed<BFloat16>(std::uniform_real_distribution<float>(-1, 1)(generator)));
}

// Real threads, so that a thread sanitizer sees what shares have in common.
inline void on_threads(int64_t parts, void (*body)(int64_t, void*), void* context) {
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part) others.emplace_back(body, part, context);
  body(0, context);
  for (std::thread& other : others) other.join();
}

// malloc'ed memory of exactly `count` elements, so that an address sanitizer sees the next one.
template <class T>
struct Exact {
  explicit Exact(int64_t count) : data(static_cast<T*>(std::malloc(count * sizeof(T)))) {}
  Exact(const Exact&) = delete;
  ~Exact() { std::free(data); }
  T& operator[](int64_t i) { return data[i]; }
  T* data;
};

struct Case {
  int64_t rows, cols;  // of blocks, or n and m
  int64_t outputs, inputs, tokens;
  int64_t x_gap, y_gap;  // floats between the end of a row and the next row
  double density;
  bool bias;
  Activation activation;
};

// A packed matrix with padding of zeros, and the same matrix dense.
struct Weight {
  BlockMatrix view;
  NMMatrix nm;
  std::vector<float> dense;
  std::vector<char> stored;
  std::unique_ptr<Exact<float>> values;
  std::unique_ptr<Exact<uint16_t>> columns;
  std::unique_ptr<Exact<int32_t>> offsets;
  std::unique_ptr<Exact<uint8_t>> positions;

  Weight(Format format, const Case& c)
      : dense(c.outputs * c.inputs, 0.0f), stored(c.outputs * c.inputs, 0) {
    if (format == Format::kNM) {
      fill_nm(c);
    } else {
      fill_blocks(c);
    }
  }

  void fill_nm(const Case& c) {
    const int64_t n = c.rows, m = c.cols;
    nm = {nullptr, nullptr, c.outputs, c.inputs, n, m};
    const int64_t bits = nm.position_bits(), tiles = nm.group_tiles();
    std::vector<float> all_values(nm.stored());
    std::vector<uint8_t> all_positions(nm.stored() * bits / 8);
    for (int64_t row = 0; row < nm.row_tiles() * 16; ++row) {
      for (int64_t group = 0; group < tiles * 8; ++group) {
        const int64_t g = row % 8, pair = row / 8 % 2, q = group % 4, half = group / 4 % 2;
        const int64_t at = (row / 16 * tiles + group / 8) * 8 + g;
        int64_t kept = 0;
        for (int64_t i = 0; i < m; ++i) {
          // Of the inputs left, as many as are still to be kept.
          if (0.5 * (uniform() + 1) * double(m - i) >= double(n - kept)) continue;
          const int64_t k = group * m + i, bit = (((half * 2 + pair) * 4 + q) * n + kept) * bits;
          all_positions[at * 2 * n * bits + bit / 8] |= uint8_t(i << (bit % 8));
          if (row < c.outputs && k < c.inputs) {
            const float value = uniform();
            all_values[at * 16 * n + ((q * 2 + half) * 2 + pair) * n + kept] = value;
            dense[row * c.inputs + k] = value;
            stored[row * c.inputs + k] = 1;
          }
          ++kept;
        }
      }
    }
    values = exact(all_values);
    positions = exact(all_positions);
    nm.values = values->data;
    nm.positions = positions->data;
  }

  void fill_blocks(const Case& c) {
    const int64_t block_rows = ceil_div(c.outputs, c.rows);
    const int64_t block_columns = ceil_div(c.inputs, c.cols);
    std::vector<float> all_values;
    std::vector<uint16_t> all_columns;
    std::vector<int32_t> all_offsets{0};
    for (int64_t row = 0; row < block_rows; ++row) {
      for (int64_t column = 0; column < block_columns; ++column) {
        if (0.5 * (uniform() + 1) >= c.density) continue;
        all_columns.push_back(static_cast<uint16_t>(column));
        for (int64_t j = column * c.cols; j < (column + 1) * c.cols; ++j) {
          for (int64_t i = row * c.rows; i < (row + 1) * c.rows; ++i) {
            const bool inside = i < c.outputs && j < c.inputs;
            all_values.push_back(inside ? uniform() : 0.0f);
            if (!inside) continue;
            dense[i * c.inputs + j] = all_values.back();
            stored[i * c.inputs + j] = 1;
          }
        }
      }
      all_offsets.push_back(static_cast<int32_t>(all_columns.size()));
    }
    values = exact(all_values);
    columns = exact(all_columns);
    offsets = exact(all_offsets);
    view = {values->data, columns->data, offsets->data, c.outputs,
            c.inputs,     c.rows,        c.cols,        c.density};
  }

  template <class T>
  static std::unique_ptr<Exact<T>> exact(const std::vector<T>& from) {
    auto copy = std::make_unique<Exact<T>>(from.size());
    if (!from.empty()) std::memcpy(copy->data, from.data(), from.size() * sizeof(T));
    return copy;
  }
};

// The same matrix, of other values.
inline BlockMatrixOf<BFloat16> with_values(const BlockMatrix& a, const BFloat16* values) {
  return {values, a.columns, a.offsets, a.out_features, a.in_features, a.rows, a.cols, a.density};
}
inline NMMatrixOf<BFloat16> with_values(const NMMatrix& a, const BFloat16* values) {
  return {values, a.positions, a.out_features, a.in_features, a.n, a.m};
}
