// From a convolution to its kernel, and how the work is shared between threads. Free of torch.
#pragma once

#include "core/cpu_info.h"
#include "cpu/conv_share.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace sparsekern {

constexpr int64_t kAnyPixels = INT64_MAX;

struct ConvKernelInfo {
  const char* name;
  Format format;
  Isa isa;
  int64_t rows;
  bool multiple;  // any multiple of `rows`, not just `rows`
  int64_t panel;
  int64_t most_step;  // pixels from one that is read to the next, at most; 0: vectors are read
  int64_t together;   // most pixels of an image that vectors can read in place, to be chosen
  ConvKernel run;
  Cores cores = Cores::kAny;

  bool takes(Format of, int64_t block_rows) const {
    return of == format && (multiple ? block_rows % rows == 0 : block_rows == rows);
  }
};

// The kernel table of the convolutions, most preferred first.
const ConvKernelInfo* conv_kernel_table(int* count);

// What runs a convolution: a kernel of its own, or, of one that is the product of the rows that its
// pixels are, one of those; or neither.
struct ConvChoice {
  const ConvKernelInfo* conv = nullptr;
  const KernelInfo* product = nullptr;
};

// First kernel of a table that takes the format, the height of its blocks and the call, within the
// ISA limit and on these cores. inputs: of the weight, with its padding.
template <class T>
ConvChoice choose_conv(Format format, int64_t block_rows, int64_t inputs, const ConvCallOf<T>& call,
                       int64_t images);

// The kernel of that name; null if there is none.
const ConvKernelInfo* find_conv_kernel(const char* name);

// Whether the outputs of each group of channels are whole bands of the weight.
template <class Matrix>
bool groups_fit(const Matrix& a, int64_t groups) {
  return groups == 1 ||
         (a.out_features % groups == 0 && a.out_features / groups % a.band_outputs() == 0);
}

// Whether planes of a few rows of the image are so short that 32 bits hold where an input lies.
// Sides of padded images have to fit 32 bits themselves.
template <class Matrix>
bool offsets_fit(const ConvKernelInfo& kernel, const Matrix& a,
                 const ConvCallOf<typename Matrix::Value>& call);

// y = activation(convolution + bias) for so many images, on at most `threads` threads. The groups
// and the offsets have to fit.
template <class Matrix>
void run_conv(const ConvKernelInfo& kernel, const Matrix& a,
              const ConvCallOf<typename Matrix::Value>& call, int64_t images, int64_t threads,
              ParallelFor parallel_for);

}  // namespace sparsekern
