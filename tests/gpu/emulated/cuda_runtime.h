// Stands in for CUDA's header of this name, with what the kernels of this folder use. Each lane of
// a warp is a thread of the CPU, and blocks, each of one warp, run one after another.
#pragma once

#include <pthread.h>

#include <thread>
#include <vector>

#define __device__
#define __global__

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0);

// Where the lanes of the running warp meet. (std::barrier would ask for C++20.)
class WarpBarrier {
 public:
  WarpBarrier() { pthread_barrier_init(&barrier_, nullptr, 32); }
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

inline WarpBarrier warp_barrier;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9 };

inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidConfiguration";
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
};

template <typename Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               Argument argument) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  if (grid.z != 1 || block.x != 32 || block.y != 1 || block.z != 1) {
    return cudaErrorInvalidConfiguration;
  }
  std::vector<std::thread> lanes;
  for (unsigned lane = 0; lane < 32; ++lane) {
    lanes.emplace_back([=] {
      threadIdx = dim3(lane, 0, 0);
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, 0);
          kernel(argument);
        }
      }
    });
  }
  for (std::thread& lane : lanes) lane.join();
  return cudaSuccess;
}
