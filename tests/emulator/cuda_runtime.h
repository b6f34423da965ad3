// Stands in for CUDA's header of this name, with what the kernels of csrc/cuda use of it: their
// blocks run in the emulator, one after another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine/counters.h"
#include "machine/machine.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (emulator::thread().index)
#define blockIdx (emulator::block().index)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

// ---- barriers and what the lanes of a warp tell each other
// ----------------------------------------

inline void __syncthreads(emulator::Site site = emulator::Site::here()) {
  emulator::meet_block(site);
}

inline void __syncwarp(emulator::Site site = emulator::Site::here()) {
  emulator::meet_warp("__syncwarp", site, nullptr, [](void* const*) {
    ++emulator::block().warp_epochs[size_t(emulator::thread().warp())];
  });
}

namespace emulator {

// A value of each lane, and what comes back to it.
struct Exchange {
  uint32_t given;
  int from;
  uint32_t taken;
};

inline void expect_whole_warp(unsigned mask, const char* what, Site site) {
  if (mask != 0xFFFFFFFFu) fail(std::string(what) + " of a part of the warp", site);
}

inline uint32_t shuffle(const char* what, unsigned mask, uint32_t value, int from, Site site) {
  expect_whole_warp(mask, what, site);
  Exchange mine{value, from, 0};
  meet_warp(what, site, &mine, [](void* const* operands) {
    for (int lane = 0; lane < kWarp; ++lane) {
      auto* mine = static_cast<Exchange*>(operands[lane]);
      mine->taken = static_cast<const Exchange*>(operands[mine->from % kWarp])->given;
    }
  });
  return mine.taken;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, emulator::Site site = emulator::Site::here()) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = emulator::shuffle("__shfl_sync", mask, bits, lane, site);
  std::memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool yes,
                              emulator::Site site = emulator::Site::here()) {
  emulator::expect_whole_warp(mask, "__ballot_sync", site);
  emulator::Exchange mine{yes, 0, 0};
  emulator::meet_warp("__ballot_sync", site, &mine, [](void* const* operands) {
    unsigned votes = 0;
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      votes |= static_cast<emulator::Exchange*>(operands[lane])->given << lane;
    }
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      static_cast<emulator::Exchange*>(operands[lane])->taken = votes;
    }
  });
  return mine.taken;
}

inline unsigned __reduce_min_sync(unsigned mask, unsigned value,
                                  emulator::Site site = emulator::Site::here()) {
  emulator::expect_whole_warp(mask, "__reduce_min_sync", site);
  emulator::Exchange mine{value, 0, 0};
  emulator::meet_warp("__reduce_min_sync", site, &mine, [](void* const* operands) {
    unsigned least = 0xFFFFFFFFu;
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      const unsigned given = static_cast<emulator::Exchange*>(operands[lane])->given;
      if (given < least) least = given;
    }
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      static_cast<emulator::Exchange*>(operands[lane])->taken = least;
    }
  });
  return mine.taken;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// ---- launches
// -----------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct CUstream_st*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess              ? "cudaSuccess"
         : error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure"
                                           : "cudaErrorInvalidConfiguration";
}

namespace emulator {

cudaError_t launch(dim3 grid, dim3 size, uint32_t shared_bytes, const void* kernel,
                   void (*body)(void*), void* argument);
void allow_shared(const void* kernel, uint32_t bytes);

}  // namespace emulator

// Without it a launch has no more than 48 KiB.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  emulator::allow_shared(reinterpret_cast<const void*>(kernel), uint32_t(bytes));
  return cudaSuccess;
}

struct cudaFuncAttributes {};

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               Argument argument) {
  struct Call {
    void (*kernel)(Argument);
    Argument argument;
  } call{kernel, argument};
  return emulator::launch(
      config->gridDim, config->blockDim, uint32_t(config->dynamicSmemBytes),
      reinterpret_cast<const void*>(kernel),
      [](void* call) {
        const auto* it = static_cast<const Call*>(call);
        it->kernel(it->argument);
      },
      &call);
}
