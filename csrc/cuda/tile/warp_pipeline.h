// A pipeline that one warp has for itself: cp.async fills kStages stages of shared memory in turn.
#pragma once

#include <stdint.h>

#include "cuda/ptx/cp_async.h"

namespace sparsekern::cuda::tile {

// Steps first, first + stride, ... below `count`. `load(step, stage)` starts the copies of a step
// to its stage, in the order of the steps; `use(stage)` reads them.
template <int kStages, class Load, class Use>
__device__ inline void warp_pipeline(int first, int stride, int count, ptx::Shared stages,
                                     uint32_t stage_bytes, Load&& load, Use&& use) {
  int next = first;
  uint32_t slot = 0;
  const auto load_next = [&](uint32_t into) {
    if (next < count) load(next, stages + into * stage_bytes);
    next += stride;
    ptx::cp_async_commit();
  };
#pragma unroll
  for (uint32_t i = 0; i < kStages - 1; ++i) load_next(i);
  for (int step = first; step < count; step += stride) {
    ptx::cp_async_wait<kStages - 2>();
    // The other lanes' copies are here, and they have read the stage that is filled next.
    __syncwarp();
    load_next((slot + kStages - 1) % kStages);
    // Lanes that had nothing to copy came here first, and what follows is of the whole warp.
    __syncwarp();
    use(stages + slot * stage_bytes);
    slot = (slot + 1) % kStages;
  }
  ptx::cp_async_wait<0>();
}

}  // namespace sparsekern::cuda::tile
