#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/cpu_info.h"

namespace sparsekern {
namespace {

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// Written in assembly: it measures the machine, so no compiler may improve it. Twelve independent
// chains cover the latency of two multiply-adds a cycle. No operand is zero or denormal: a core may
// treat those apart.
#define TWELVE(f) \
  f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7") f("8") f("9") f("10") f("11")
#define START(n, reg) "vbroadcastss %1, %%" reg n "\n"
#define CHAIN(n, reg) "vfmadd231ps %%" reg "15, %%" reg "14, %%" reg n "\n"
#define START_YMM(n) START(n, "ymm")
#define CHAIN_YMM(n) CHAIN(n, "ymm")
#define START_ZMM(n) START(n, "zmm")
#define CHAIN_ZMM(n) CHAIN(n, "zmm")
#define CHAIN_PAIRS(n) "vdpbf16ps %%zmm15, %%zmm14, %%zmm" n "\n"
#define CHAINS(start, chain)                                                                       \
  __asm__ volatile(TWELVE(start) start("14")                                                       \
                       start("15") "1:\n" TWELVE(chain) "dec %0\njnz 1b\nvzeroupper\n"             \
                   : "+r"(rounds)                                                                  \
                   : "m"(one)                                                                      \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                     "xmm9", "xmm10", "xmm11", "xmm14", "xmm15")
constexpr int64_t kChains = 12;

void chains_avx2(int64_t rounds) {
  const float one = 1.0f;
  CHAINS(START_YMM, CHAIN_YMM);
}

void chains_avx512(int64_t rounds) {
  const float one = 1.0f;
  CHAINS(START_ZMM, CHAIN_ZMM);
}

void chains_avx512_bf16(int64_t rounds) {
  const uint32_t one = 0x3f803f80;  // twice, as bfloat16
  CHAINS(START_ZMM, CHAIN_PAIRS);
}
#endif

#if defined(__x86_64__)
#define SPARSEKERN_IN_REGISTER(v) "+x"(v)
#elif defined(__aarch64__)
#define SPARSEKERN_IN_REGISTER(v) "+w"(v)
#else
#define SPARSEKERN_IN_REGISTER(v) "+m"(v)
#endif

void chains_portable(int64_t rounds) {
  typedef float Reg __attribute__((vector_size(16)));
  Reg sums[12] = {};
  Reg factor = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t i = 0; i < rounds; ++i) {
    for (Reg& sum : sums) sum = sum * factor + factor;
    for (Reg& sum : sums) __asm__ volatile("" : SPARSEKERN_IN_REGISTER(sum));
  }
}

}  // namespace

double fma_peak_gflops(double seconds, Numbers numbers) {
  void (*chains)(int64_t) = chains_portable;
  int64_t flops_a_round = 12 * 4 * 2;
#if defined(__x86_64__)
  if (isa_limit() == Isa::kAvx2) {
    chains = chains_avx2;
    flops_a_round = kChains * 8 * 2;
  } else if (isa_limit() == Isa::kAvx512Bf16 && numbers == Numbers::kBFloat16) {
    chains = chains_avx512_bf16;
    flops_a_round = kChains * 32 * 2;
  } else if (isa_limit() >= Isa::kAvx512) {
    chains = chains_avx512;
    flops_a_round = kChains * 16 * 2;
  }
#endif
  constexpr int64_t kRounds = 200000;
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    const double start = now();
    chains(kRounds);
    best = std::max(best, double(kRounds) * double(flops_a_round) / (now() - start));
  }
  return best * 1e-9;
}

double read_bandwidth_gbs(int64_t bytes, double seconds) {
  typedef int64_t Reg __attribute__((vector_size(16)));
  constexpr int64_t kStep = 8;
  const int64_t count = std::max(kStep, bytes / int64_t(sizeof(Reg)) / kStep * kStep);
  std::unique_ptr<Reg, void (*)(void*)> buffer(
      static_cast<Reg*>(std::aligned_alloc(64, size_t(count) * sizeof(Reg))), std::free);
  Reg* const data = buffer.get();
  if (data == nullptr) throw std::bad_alloc();
  for (int64_t i = 0; i < count; ++i) data[i] = Reg{i, i};
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    const double start = now();
    Reg a{}, b{}, c{}, d{};
    for (int64_t i = 0; i < count; i += kStep) {
      a ^= data[i] ^ data[i + 1];
      b ^= data[i + 2] ^ data[i + 3];
      c ^= data[i + 4] ^ data[i + 5];
      d ^= data[i + 6] ^ data[i + 7];
    }
    const Reg all = a ^ b ^ c ^ d;
    __asm__ volatile("" : : "m"(all));
    best = std::max(best, double(count) * sizeof(Reg) / (now() - start));
  }
  return best * 1e-9;
}

}  // namespace sparsekern
