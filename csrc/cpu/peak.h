// Micro-benchmarks of the bounds that a kernel's speed is compared with.
#pragma once

#include <stdint.h>

#include "core/view.h"

namespace sparsekern {

// Of one core at the level in use; of bfloat16 where it multiplies them, of float32 elsewhere.
double fma_peak_gflops(double seconds, Numbers numbers);

// Of vectors of so many floats, on data in registers.
double multiply_adds_a_second(int64_t lanes, double seconds);

// Seconds from one multiply-add to another that needs its result: some four cycles on any core, by
// which times that are counted in cycles can be told.
double multiply_add_latency(double seconds);

// Of vectors and splats out of L1, in a loop that multiplies and adds one of each.
double loads_a_second(int64_t lanes, double seconds);

// bfloat16 numbers made into float32, in L2.
double widened_a_second(double seconds);

double read_bandwidth_gbs(int64_t bytes, double seconds);

}  // namespace sparsekern
