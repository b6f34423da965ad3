// How the host launches a kernel.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace sparsekern::cuda {

struct Grid {
  int64_t x, y, z = 1;
};

// Errors of the launch itself come back at once; a kernel's own when its stream is next waited for.
template <class Argument>
cudaError_t launch(void (*kernel)(Argument), Grid grid, int threads, uint32_t shared_bytes,
                   const Argument& argument, cudaStream_t stream) {
  constexpr int64_t kMostX = INT32_MAX, kMostYZ = 65535;
  if (grid.x > kMostX || grid.y > kMostYZ || grid.z > kMostYZ) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, argument);
}

}  // namespace sparsekern::cuda
