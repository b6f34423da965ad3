// Micro-benchmarks of the bounds that a kernel's speed is compared with.
#pragma once

#include <stdint.h>

namespace sparsekern {

double fma_peak_gflops(double seconds);
double read_bandwidth_gbs(int64_t bytes, double seconds);

}  // namespace sparsekern
