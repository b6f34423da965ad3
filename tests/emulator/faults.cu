// Kernels that do one thing wrong each, and some that do the same right: whether the emulator
// tells.
#include <cuda_runtime.h>
#include <string.h>

#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/mma.h"

using namespace sparsekern;
using ptx::Global;
using ptx::Shared;

namespace {

constexpr int kThreads = 64;

struct Arrays {
  Global<const uint32_t> x;  // kThreads words
  Global<uint32_t> y;        // the same
};

__device__ Shared word(int i) { return ptx::shared_memory() + uint32_t(4 * i); }
__device__ int me() { return int(threadIdx.x); }

// ---- global memory ----

__global__ void copies(Arrays p) { ptx::store(p.y + me(), ptx::load(p.x + me())); }
__global__ void reads_beyond(Arrays p) { ptx::store(p.y + me(), ptx::load(p.x + (me() + 1))); }
__global__ void reads_before(Arrays p) { ptx::store(p.y + me(), ptx::load(p.x + (me() - 1))); }
__global__ void writes_beyond(Arrays p) { ptx::store(p.y + (me() + 1), 0u); }
__global__ void reads_misaligned(Arrays p) {
  const auto half = p.x.as<const uint16_t>() + 1;
  ptx::store(p.y + me(), ptx::load(half.as<const uint32_t>()));
}
__global__ void writes_an_input(Arrays p) {
  ptx::store(Global<uint32_t>{const_cast<uint32_t*>(p.x.at)} + me(), 0u);
}
__global__ void writes_one_place_twice(Arrays p) { ptx::store(p.y + me() / 2, uint32_t(me())); }
__global__ void reads_what_it_writes(Arrays p) {
  ptx::store(p.y + me(), 1u);
  ptx::load(Global<const uint32_t>{p.y.at} + me());
}

// ---- between thread blocks, of which there are two ----

// Words of the block, and of the other one.
__device__ int mine() { return int(blockIdx.x) * 32 + me() % 32; }
__device__ int others() { return (1 - int(blockIdx.x)) * 32 + me() % 32; }

__global__ void writes_apart(Arrays p) {
  if (me() < 32) ptx::store(p.y + mine(), ptx::load(p.x + mine()));
}
__global__ void writes_what_another_block_writes(Arrays p) { ptx::store(p.y + me(), 0u); }
__global__ void reads_what_an_earlier_block_writes(Arrays p) {
  if (blockIdx.x == 0) ptx::store(p.y + me(), 1u);
  if (blockIdx.x == 1) ptx::load(Global<const uint32_t>{p.y.at} + me());
}
__global__ void reads_what_nobody_wrote(Arrays p) {
  ptx::load(Global<const uint32_t>{p.y.at} + me());
}

// Behind a launch that has written all of y.
__global__ void reads_what_the_last_launch_wrote(Arrays p) {
  ptx::load(Global<const uint32_t>{p.y.at} + others());
}
__global__ void reads_what_a_later_block_writes(Arrays p) {
  if (blockIdx.x == 0) ptx::load(Global<const uint32_t>{p.y.at} + me());
  if (blockIdx.x == 1) ptx::store(p.y + me(), 1u);
}

// ---- shared memory ----

// Each thread gives a word to its neighbour; what lies between is the kernel's matter.
template <class Between>
__device__ void pass_on(const Arrays& p, int step, Between between) {
  ptx::store(word(me()), ptx::load(p.x + me()));
  between();
  ptx::store(p.y + me(), ptx::load<uint32_t>(word((me() + step) % kThreads)));
}

__global__ void passes_on_behind_a_barrier(Arrays p) {
  pass_on(p, 33, [] { __syncthreads(); });
}
__global__ void passes_on_without_a_barrier(Arrays p) {
  pass_on(p, 33, [] {});
}
__global__ void passes_on_in_a_warp(Arrays p) {
  ptx::store(word(me()), ptx::load(p.x + me()));
  __syncwarp();
  ptx::store(p.y + me(), ptx::load<uint32_t>(word(me() ^ 1)));
}
__global__ void passes_on_in_a_warp_unordered(Arrays p) {
  ptx::store(word(me()), ptx::load(p.x + me()));
  ptx::store(p.y + me(), ptx::load<uint32_t>(word(me() & ~1)));
}
__global__ void passes_on_between_warps_by_a_barrier_of_the_warp(Arrays p) {
  pass_on(p, 32, [] { __syncwarp(); });
}
__global__ void writes_what_others_still_read(Arrays p) {
  pass_on(p, 33, [] { __syncthreads(); });
  ptx::store(word(me()), 0u);
}
__global__ void writes_a_word_by_two_threads(Arrays) { ptx::store(word(me() / 2), 0u); }
__global__ void reads_unwritten(Arrays p) {
  if (me() != 5) ptx::store(word(me()), 1u);
  __syncthreads();
  ptx::store(p.y + me(), ptx::load<uint32_t>(word(me())));
}
__global__ void writes_beyond_shared(Arrays) { ptx::store(word(me() + 1024), 0u); }

// ---- copies ----

// 16 threads copy the words to shared memory, and all read them.
template <class Between>
__device__ void copy(const Arrays& p, Between between) {
  if (me() < 16) {
    ptx::cp_async_16(word(4 * me()), (p.x + 4 * me()).as<const uint4>(), true);
  }
  ptx::cp_async_commit();
  between();
  ptx::store(p.y + me(), ptx::load<uint32_t>(word(me())));
  ptx::cp_async_wait<0>();
}

__global__ void copies_and_waits(Arrays p) {
  copy(p, [] {
    ptx::cp_async_wait<0>();
    __syncthreads();
  });
}
__global__ void copies_without_waiting(Arrays p) {
  copy(p, [] { __syncthreads(); });
}
__global__ void waits_for_too_few(Arrays p) {
  copy(p, [] {
    ptx::cp_async_wait<1>();
    __syncthreads();
  });
}
__global__ void waits_behind_the_barrier(Arrays p) {
  copy(p, [] {
    __syncthreads();
    ptx::cp_async_wait<0>();
  });
}
__global__ void copies_over_what_is_read(Arrays p) {
  ptx::store(word(me()), 1u);
  __syncthreads();
  ptx::load<uint32_t>(word(63 - me()));
  copy(p, [] {
    ptx::cp_async_wait<0>();
    __syncthreads();
  });
}
__global__ void ends_while_copying(Arrays p) {
  if (me() < 16) ptx::cp_async_16(word(4 * me()), p.x.as<const uint4>(), true);
}

// ---- what is right, but slow ----

// Four lanes of a sector load a word each eighth; all lanes of a warp store to one bank.
__global__ void scatters(Arrays p) {
  const uint32_t word_of_lane = ptx::load(p.x + me() % 8 * 8);
  ptx::store(word(me() % 32 * 32 + me() / 32), word_of_lane);
}

// ---- what a warp does together ----

__global__ void multiplies(Arrays p) {
  float d[4] = {};
  const uint32_t a[4] = {};
  ptx::mma_m16n8k16<ptx::Float16>(d, a, 0, 0);
  ptx::store(p.y + me(), ptx::load(p.x + me()));
}
__global__ void multiplies_by_half_a_warp(Arrays p) {
  if (me() % 32 < 16) multiplies(p);
}
__global__ void multiplies_in_two_branches(Arrays p) {
  if (me() % 2 == 0) {
    multiplies(p);
  } else {
    float d[4] = {};
    const uint32_t a[4] = {};
    ptx::mma_m16n8k16<ptx::Float16>(d, a, 0, 0);
  }
}
__global__ void meets_by_half_the_block(Arrays) {
  if (me() < 32) __syncthreads();
}
__global__ void meets_at_two_barriers(Arrays) {
  if (me() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void loads_a_matrix_unordered(Arrays p) {
  // A row of 16 bytes is written by four lanes.
  ptx::store(word(me()), ptx::load(p.x + me()));
  uint32_t d[4];
  ptx::ldmatrix(d, word(me() / 32 * 32 + me() % 8 * 4));
  ptx::store(p.y + me(), d[0]);
}

struct Line {
  const char* name;
  void (*kernel)(Arrays);
  int blocks = 1;
  bool second = false;  // launch; the first one is `copies`
};

#define LINE(kernel) {#kernel, kernel}
const Line kLines[] = {
    LINE(copies),
    LINE(reads_beyond),
    LINE(reads_before),
    LINE(writes_beyond),
    LINE(reads_misaligned),
    LINE(writes_an_input),
    LINE(writes_one_place_twice),
    LINE(reads_what_it_writes),
    {"writes_apart", writes_apart, 2},
    {"writes_what_another_block_writes", writes_what_another_block_writes, 2},
    {"reads_what_an_earlier_block_writes", reads_what_an_earlier_block_writes, 2},
    {"reads_what_nobody_wrote", reads_what_nobody_wrote, 2},
    {"reads_what_the_last_launch_wrote", reads_what_the_last_launch_wrote, 2, true},
    {"reads_what_a_later_block_writes", reads_what_a_later_block_writes, 2, true},
    LINE(passes_on_behind_a_barrier),
    LINE(passes_on_without_a_barrier),
    LINE(passes_on_in_a_warp),
    LINE(passes_on_in_a_warp_unordered),
    LINE(passes_on_between_warps_by_a_barrier_of_the_warp),
    LINE(writes_what_others_still_read),
    LINE(writes_a_word_by_two_threads),
    LINE(reads_unwritten),
    LINE(writes_beyond_shared),
    LINE(copies_and_waits),
    LINE(copies_without_waiting),
    LINE(waits_for_too_few),
    LINE(waits_behind_the_barrier),
    LINE(copies_over_what_is_read),
    LINE(ends_while_copying),
    LINE(scatters),
    LINE(multiplies),
    LINE(multiplies_by_half_a_warp),
    LINE(multiplies_in_two_branches),
    LINE(meets_by_half_the_block),
    LINE(meets_at_two_barriers),
    LINE(loads_a_matrix_unordered),
};

cudaError_t run(void (*kernel)(Arrays), int blocks, const Arrays& arrays) {
  return cuda::launch(kernel, cuda::Grid{blocks, 1}, kThreads, 4096, arrays, nullptr);
}

}  // namespace

// Blocks of 64 threads with 4 KiB of shared memory.
extern "C" const char* run_fault(const char* name, const uint32_t* x, uint32_t* y) {
  for (const Line& line : kLines) {
    if (strcmp(line.name, name) != 0) continue;
    const Arrays arrays{{x}, {y}};
    const cudaError_t first = line.second ? run(copies, 1, arrays) : cudaSuccess;
    return cudaGetErrorName(first == cudaSuccess ? run(line.kernel, line.blocks, arrays) : first);
  }
  return "no such kernel";
}
