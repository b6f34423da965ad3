// The C view of a convolution: sizes, strides and where its input lies for the kernels. No torch,
// no std.
//
// The weight is a matrix [outputs, kernel_h * kernel_w * channels] (sparsekern/layouts/conv.py). An
// input of that matrix is a tap and a channel, and what it is multiplied by are the pixels of the
// image moved by the tap: kernels find them at one offset for all pixels, in planes.
#pragma once

#include "core/view.h"

namespace sparsekern {

// One of the two sides of an image: sizes of input and output, and how the kernel moves along it.
struct Side {
  int64_t in, out, kernel, stride, padding, dilation;

  // A stride takes every stride-th pixel, from one of as many phases. Taps of the same phase see
  // the same pixels, moved by whole steps.
  int64_t phases() const { return min64(kernel, period()); }
  int64_t phase(int64_t index) const { return index * dilation % stride; }
  int64_t phase_index(int64_t tap) const { return tap % period(); }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  int64_t most_shift() const { return shift(kernel - 1); }

 private:
  int64_t period() const {
    int64_t a = stride, b = dilation % stride;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return stride / a;
  }
};

// What is convolved, of one group of channels. x and y are images with any strides, in numbers, of
// which that of y's rows is its width times that of its pixels.
template <class T>
struct ConvCallOf {
  const T* x;
  int64_t x_image, x_channel, x_row, x_column;
  T* y;
  int64_t y_image, y_channel, y_pixel;
  const T* bias;  // [outputs of all groups] or null
  Activation activation;
  int64_t channels, groups;  // channels: of a group
  Side height, width;

  int64_t inputs() const { return height.kernel * width.kernel * channels; }
  bool is_pointwise() const {
    const auto one = [](const Side& side) {
      return side.kernel == 1 && side.stride == 1 && side.padding == 0;
    };
    return one(height) && one(width);
  }
};

// How the pixels that a band of output rows needs lie: for each channel and phase a plane of rows,
// as long as those of the output and what taps reach beyond. A pixel of the output is a place in a
// plane, p = row * pitch + column; what lies between its rows is computed and not written.
struct PlaneLayout {
  int64_t pitch;    // from a row to the next
  int64_t rows;     // of a plane
  int64_t channel;  // floats from a channel to the next

  template <class T>
  PlaneLayout(const ConvCallOf<T>& call, int64_t out_rows)
      : pitch(call.width.out + call.width.most_shift()), rows(out_rows + call.height.most_shift()) {
    // An odd number of cache lines: planes do not compete for the same sets of a cache.
    constexpr int64_t kLine = 16;
    const int64_t floats = call.height.phases() * call.width.phases() * rows * pitch;
    channel = (ceil_div(floats, kLine) | 1) * kLine;
  }

  template <class T>
  int64_t offset(const ConvCallOf<T>& call, int64_t tap_row, int64_t tap_column) const {
    const int64_t phase =
        call.height.phase_index(tap_row) * call.width.phases() + call.width.phase_index(tap_column);
    return (phase * rows + call.height.shift(tap_row)) * pitch + call.width.shift(tap_column);
  }
};

}  // namespace sparsekern
