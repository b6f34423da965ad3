// Values that a kernel holds in a register through its loop.
#pragma once

#include <stdint.h>

namespace sparsekern::ptx {

// The same value, whose origin the compiler does not know: else it may compute it anew, from the
// thread's number on, each time it is used, to save the register.
__device__ inline uint32_t keep(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace sparsekern::ptx
