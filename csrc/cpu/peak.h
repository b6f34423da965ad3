// Micro-benchmarks of the bounds that a kernel's speed is compared with.
#pragma once

#include <stdint.h>

#include "core/view.h"

namespace sparsekern {

// Of one core at the level in use; of bfloat16 where it multiplies them, of float32 elsewhere.
double fma_peak_gflops(double seconds, Numbers numbers);
double read_bandwidth_gbs(int64_t bytes, double seconds);

}  // namespace sparsekern
