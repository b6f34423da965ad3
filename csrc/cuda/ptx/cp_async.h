// cp.async: copies from global to shared memory that run while the thread goes on. PTX ISA
// 9.7.9.25.3; sm_80 on. A thread sees its own copies when it has waited for their group; others see
// them after a barrier behind that.
#pragma once

#include <stdint.h>

#include "cuda/ptx/memory.h"

namespace sparsekern::ptx {

// 16 bytes, at multiples of 16 on both sides, past L1. Zeros if not `inside`; then nothing is read.
__device__ inline void cp_async_16(Shared to, Global<const uint4> from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.at),
               "l"(__cvta_generic_to_global(from.at)), "r"(inside ? 16 : 0)
               : "memory");
}

// Makes a group of the copies since the last group; an empty one counts too.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kPending groups are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace sparsekern::ptx
