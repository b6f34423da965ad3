// The way along the blocks of several block rows at once, by ascending columns, so that what they
// share of the activations is loaded once.
#pragma once

#include <stdint.h>

#include "cuda/tile/block_entries.h"

namespace sparsekern::cuda::tile {

// A word of 32 bits, or of 64.
template <bool kLong>
struct Word {
  using type = uint32_t;
};
template <>
struct Word<true> {
  using type = uint64_t;
};

// All lanes of all warps walk alike; each follows one of the kStrips strips.
template <class Product, int kStrips>
class BlockWalk {
 public:
  __device__ BlockWalk(const Product& product, int first_strip) : product_(product) {
    const int strip = first_strip + int(threadIdx.x) % kStrips, group = strip / product.strips;
    if (group < product.groups) {
      entry_ = first(product, group);
      end_ = entry_ + count(product, group);
    }
    column_ = column_at(entry_);
    next_ = column_at(entry_ + 1);
    find();
  }

  __device__ bool done() const { return mask_ == 0; }
  // Bit i: whether strip i has a block here.
  __device__ uint32_t mask() const { return mask_; }
  // The slice's first input.
  __device__ int input() const { return least_ * depth(product_) + slice_ * kSliceInputs; }
  // Of the slices of a block.
  __device__ int slice() const { return slice_; }
  // The block of a strip whose bit is set; the same strip in all lanes.
  __device__ int block(int strip) const {
    return tile::block(product_, kStrips == 1 ? entry_ : __shfl_sync(~0u, entry_, strip));
  }

  __device__ void step() {
    if (++slice_ < slices(product_)) return;
    slice_ = 0;
    if (column_ == least_) {
      ++entry_;
      column_ = next_;
      // Loaded a block ahead, as the address of the activations waits for it.
      next_ = column_at(entry_ + 1);
    }
    find();
  }

 private:
  static constexpr int kNone = 0x7FFFFFFF;

  __device__ int column_at(int entry) const {
    return entry < end_ ? column(product_, entry) : kNone;
  }
  __device__ void find() {
    if constexpr (kStrips == 1) {
      least_ = column_;
      mask_ = least_ != kNone;
    } else {
      least_ = int(__reduce_min_sync(~0u, unsigned(column_)));
      const unsigned here = __ballot_sync(~0u, column_ == least_) & ((1u << kStrips) - 1);
      mask_ = least_ == kNone ? 0 : here;
    }
  }
  const Product& product_;
  int entry_ = 0, end_ = 0;
  int column_, next_, least_;
  int slice_ = 0;
  uint32_t mask_;
};

}  // namespace sparsekern::cuda::tile
