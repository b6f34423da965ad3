// Stands in for csrc/cuda/ptx/keep.h: registers are not the emulator's matter.
#pragma once

#include <stdint.h>

namespace sparsekern::ptx {

inline uint32_t keep(uint32_t value) { return value; }

}  // namespace sparsekern::ptx
