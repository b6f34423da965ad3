// Places in global memory, for the host and for kernels.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace sparsekern::ptx {

// A place in global memory. No pointer, so that nothing reads through it unseen.
template <class T>
struct Global {
  T* at;

  __host__ __device__ Global operator+(int64_t elements) const { return {at + elements}; }
  template <class U>
  __host__ __device__ Global<U> as() const {
    return {reinterpret_cast<U*>(at)};
  }
};

}  // namespace sparsekern::ptx
