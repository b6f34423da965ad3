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

// How a side of the image lies in planes: whole, where kernels take pixels that are a stride apart,
// else its phases one by one.
struct PlaneSide {
  Side side;
  bool whole;

  // most_step: pixels from one to the next that kernels can step over, at most; 0 for kernels that
  // read vectors. A phase that no tap sees is better left out.
  PlaneSide(const Side& of, int64_t most_step)
      : side(of), whole(of.stride <= most_step && of.phases() == of.stride) {}

  int64_t phases() const { return whole ? 1 : side.phases(); }
  int64_t phase(int64_t index) const { return whole ? 0 : side.phase(index); }
  int64_t phase_index(int64_t tap) const { return whole ? 0 : side.phase_index(tap); }
  int64_t shift(int64_t tap) const { return whole ? tap * side.dilation : side.shift(tap); }
  // From a pixel of the output to the next: places of a plane. From a place to the next: pixels of
  // the image.
  int64_t step() const { return whole ? side.stride : 1; }
  int64_t image_step() const { return whole ? 1 : side.stride; }
  // Places that so many pixels of the output need.
  int64_t length(int64_t out) const { return (out - 1) * step() + shift(side.kernel - 1) + 1; }
};

// How the pixels that a band of output rows needs lie: for each channel and phase a plane of rows,
// as long as those of the output and what taps reach beyond.
struct PlaneLayout {
  PlaneSide height, width;
  int64_t pitch;    // from a row to the next
  int64_t rows;     // of a plane
  int64_t channel;  // floats from a channel to the next

  // Always inlined: a function of its own in the file of an instruction set could be linked into
  // others.
  template <class T>
  __attribute__((always_inline)) PlaneLayout(const ConvCallOf<T>& call, int64_t out_rows,
                                             int64_t most_step)
      : height(call.height, most_step),
        width(call.width, most_step),
        pitch(width.length(call.width.out)),
        rows(height.length(out_rows)) {
    // Room for what whole vectors write beyond a plane; and an odd number of cache lines, so that
    // planes do not compete for the same sets of a cache.
    constexpr int64_t kLine = 16;
    channel = (ceil_div(phases() * rows * pitch + kLine - 1, kLine) | 1) * kLine;
  }

  int64_t phases() const { return height.phases() * width.phases(); }
  int64_t offset(int64_t tap_row, int64_t tap_column) const {
    const int64_t phase =
        height.phase_index(tap_row) * width.phases() + width.phase_index(tap_column);
    return (phase * rows + height.shift(tap_row)) * pitch + width.shift(tap_column);
  }
};

}  // namespace sparsekern
