// Single instructions by one warp, on registers that the caller fills: what each lane holds is an
// array of the lane's own.
#include <cuda_runtime.h>
#include <string.h>

#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/mma_sp.h"
#include "cuda/ptx/movmatrix.h"

using namespace sparsekern;

namespace {

struct Registers {
  ptx::Global<const uint32_t> a, b;      // [32][4]; b of mma: the first two
  ptx::Global<const uint32_t> metadata;  // [32]
  ptx::Global<float> d;                  // [32][4]; of ldmatrix and movmatrix: bits
};

__device__ int lane() { return int(threadIdx.x); }

__device__ void load_words(uint32_t (&words)[4], ptx::Global<const uint32_t> from) {
  for (int i = 0; i < 4; ++i) words[i] = ptx::load(from + (4 * lane() + i));
}

__device__ void store_floats(const Registers& p, const float (&d)[4]) {
  for (int i = 0; i < 4; ++i) ptx::store(p.d + (4 * lane() + i), d[i]);
}

__device__ void store_words(const Registers& p, const uint32_t (&d)[4]) {
  for (int i = 0; i < 4; ++i) {
    ptx::store(p.d.template as<uint32_t>() + (4 * lane() + i), d[i]);
  }
}

template <class Number>
__global__ void probe_mma(Registers p) {
  uint32_t a[4], b[4];
  float d[4] = {};
  load_words(a, p.a);
  load_words(b, p.b);
  ptx::mma_m16n8k16<Number>(d, a, b[0], b[1]);
  store_floats(p, d);
}

template <class Number, int kSelector>
__global__ void probe_mma_sp(Registers p) {
  uint32_t a[4], b[4];
  float d[4] = {};
  load_words(a, p.a);
  load_words(b, p.b);
  ptx::mma_sp_m16n8k32<Number, kSelector>(d, a, b, ptx::load(p.metadata + lane()));
  store_floats(p, d);
}

// The matrices lie one behind the other, row by row, as `a` has them.
template <bool kTrans>
__global__ void probe_ldmatrix(Registers p) {
  const ptx::Shared memory = ptx::shared_memory();
  uint32_t a[4], d[4];
  load_words(a, p.a);
  for (int i = 0; i < 4; ++i) ptx::store(memory + uint32_t(16 * lane() + 4 * i), a[i]);
  __syncthreads();
  if constexpr (kTrans) {
    ptx::ldmatrix_trans(d, memory + uint32_t(16 * lane()));
  } else {
    ptx::ldmatrix(d, memory + uint32_t(16 * lane()));
  }
  store_words(p, d);
}

__global__ void probe_movmatrix(Registers p) {
  uint32_t a[4], d[4] = {};
  load_words(a, p.a);
  d[0] = ptx::movmatrix_trans(a[0]);
  store_words(p, d);
}

struct Line {
  const char* name;
  void (*kernel)(Registers);
};

const Line kLines[] = {
    {"mma_bf16", probe_mma<ptx::BFloat16>},
    {"mma_f16", probe_mma<ptx::Float16>},
    {"mma_sp_bf16_0", probe_mma_sp<ptx::BFloat16, 0>},
    {"mma_sp_bf16_1", probe_mma_sp<ptx::BFloat16, 1>},
    {"mma_sp_f16_0", probe_mma_sp<ptx::Float16, 0>},
    {"mma_sp_f16_1", probe_mma_sp<ptx::Float16, 1>},
    {"ldmatrix", probe_ldmatrix<false>},
    {"ldmatrix_trans", probe_ldmatrix<true>},
    {"movmatrix", probe_movmatrix},
};

}  // namespace

extern "C" const char* run_probe(const char* name, const uint32_t* a, const uint32_t* b,
                                 const uint32_t* metadata, float* d) {
  for (const Line& line : kLines) {
    const Registers registers{{a}, {b}, {metadata}, {d}};
    if (strcmp(line.name, name) == 0) {
      const cudaError_t error =
          cuda::launch(line.kernel, cuda::Grid{1, 1}, 32, 512, registers, nullptr);
      return cudaGetErrorName(error);
    }
  }
  return "no such instruction";
}
