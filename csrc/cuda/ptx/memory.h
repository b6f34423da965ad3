// Addresses, and the loads and stores of a thread. Kernels read and write memory through these
// functions alone, so that another implementation of this header can watch every access
// (tests/emulator).
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/ptx/global.h"

namespace sparsekern::ptx {

// A place in the block's shared memory, in bytes.
struct Shared {
  uint32_t at;

  __device__ Shared operator+(uint32_t bytes) const { return {at + bytes}; }
};

// Where the dynamic shared memory of the launch begins: at a multiple of 128 bytes.
__device__ inline Shared shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return {static_cast<uint32_t>(__cvta_generic_to_shared(memory))};
}

// Of data that no thread of the launch writes.
template <class T>
__device__ inline T load(Global<const T> from) {
  return __ldg(from.at);
}

template <class T>
__device__ inline void store(Global<T> to, T value) {
  if constexpr (sizeof(T) == 16) {
    // The compiler may cut one in pieces whose words come from different instructions.
    union {
      T value;
      uint32_t words[4];
    } bits{value};
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to.at)),
                 "r"(bits.words[0]), "r"(bits.words[1]), "r"(bits.words[2]), "r"(bits.words[3])
                 : "memory");
  } else {
    *to.at = value;
  }
}

// T of 4 bytes, or of 16.
template <class T>
__device__ inline T load(Shared from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
  union {
    uint32_t words[sizeof(T) / 4];
    T value;
  } bits;
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(bits.words[0]) : "r"(from.at) : "memory");
  } else {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.words[0]), "=r"(bits.words[1]), "=r"(bits.words[2]),
                   "=r"(bits.words[3])
                 : "r"(from.at)
                 : "memory");
  }
  return bits.value;
}

// T of 4 bytes.
template <class T>
__device__ inline void store(Shared to, T value) {
  static_assert(sizeof(T) == 4);
  union {
    T value;
    uint32_t word;
  } bits{value};
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to.at), "r"(bits.word) : "memory");
}

}  // namespace sparsekern::ptx
