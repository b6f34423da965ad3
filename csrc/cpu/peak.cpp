#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu_info.h"
#include "cpu/isa/tile_config.h"

namespace sparsekern {
namespace {

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// Runs body(rounds) for so many seconds; the most rounds that it did in one.
template <class Body>
double best_rounds_a_second(int64_t rounds, double seconds, const Body& body) {
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    const double start = now();
    body(rounds);
    best = std::max(best, double(rounds) / (now() - start));
  }
  return best;
}

// Loops of multiply-adds of vectors of one width.
struct Loops {
  void (*in_registers)(int64_t rounds);
  void (*one_chain)(int64_t rounds);  // each waits for the one before
  void (*loading)(int64_t rounds);    // each splats one factor and loads the other
};
constexpr int64_t kChains = 12;  // multiply-adds in a round of each
constexpr int64_t kLoads = 2 * kChains;

struct alignas(64) Line {
  float floats[16];
};

#if defined(__x86_64__)
// Written in assembly: it measures the machine, so no compiler may improve it. Twelve independent
// chains cover the latency of two multiply-adds a cycle. No operand is zero or denormal: a core may
// treat those apart.
#define TWELVE(f, reg)                                                                            \
  f("0", reg) f("1", reg) f("2", reg) f("3", reg) f("4", reg) f("5", reg) f("6", reg) f("7", reg) \
      f("8", reg) f("9", reg) f("10", reg) f("11", reg)
#define START(n, reg) "vbroadcastss %1, %%" reg n "\n"
#define CHAIN(n, reg) "vfmadd231ps %%" reg "15, %%" reg "14, %%" reg n "\n"
#define CHAIN_PAIRS(n, reg) "vdpbf16ps %%" reg "15, %%" reg "14, %%" reg n "\n"
#define ONE_CHAIN(n, reg) CHAIN("0", reg)
#define LOADING(n, reg) "vbroadcastss %1, %%" reg "13\n vfmadd231ps %2, %%" reg "13, %%" reg n "\n"
#define LOOP(step, reg)                                                                            \
                                                                                                   \
  const Line line = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};                            \
  __asm__ volatile(TWELVE(START, reg) START("14", reg)                                             \
                       START("15", reg) "1:\n" TWELVE(step, reg) "dec %0\njnz 1b\nvzeroupper\n"    \
                   : "+r"(rounds)                                                                  \
                   : "m"(one), "m"(line)                                                           \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                     "xmm9", "xmm10", "xmm11", "xmm13", "xmm14", "xmm15")
// Named by the level that they need.
#define LOOPS(name, reg)                  \
  void chains_##name(int64_t rounds) {    \
    const float one = 1.0f;               \
    LOOP(CHAIN, reg);                     \
  }                                       \
  void one_chain_##name(int64_t rounds) { \
    const float one = 1.0f;               \
    LOOP(ONE_CHAIN, reg);                 \
  }                                       \
  void loading_##name(int64_t rounds) {   \
    const float one = 1.0f;               \
    LOOP(LOADING, reg);                   \
  }                                       \
  constexpr Loops kLoops_##name = {chains_##name, one_chain_##name, loading_##name};

LOOPS(avx2_4_lanes, "xmm")
LOOPS(avx2_8_lanes, "ymm")
LOOPS(avx512_16_lanes, "zmm")

// Not inlined: its instructions must stay in a function named by their level.
__attribute__((noinline)) void chains_avx512_bf16(int64_t rounds) {
  const uint32_t one = 0x3f803f80;  // twice, as bfloat16
  LOOP(CHAIN_PAIRS, "zmm");
}

// Six chains of tiles, 16 x 32 by 32 x 16. Their numbers differ: with all alike, fewer bits change
// from one product to the next, and a core that is held to a power runs faster than it ever would.
constexpr int64_t kTileChains = 6, kTileMultiplyAdds = 16 * 16 * 32;

__attribute__((noinline)) void chains_amx_bf16(int64_t rounds) {
  const TileConfig config = full_tiles();
  TileConfig before;
  alignas(64) uint16_t numbers[2][16][32];
  uint32_t random = 1;
  for (auto& tile : numbers) {
    for (auto& row : tile) {
      for (uint16_t& number : row) {
        random = random * 1664525 + 1013904223;
        number = uint16_t(0x3f80 | (random >> 16 & 0x807f));  // 1 to 2, of either sign
      }
    }
  }
  __asm__ volatile(
      "sttilecfg %1\n ldtilecfg %2\n"
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"
      "tilezero %%tmm3\n tilezero %%tmm4\n tilezero %%tmm5\n"
      "tileloadd (%3,%5,1), %%tmm6\n tileloadd (%4,%5,1), %%tmm7\n"
      "1:\n"
      "tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n tdpbf16ps %%tmm7, %%tmm6, %%tmm1\n"
      "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n tdpbf16ps %%tmm7, %%tmm6, %%tmm3\n"
      "tdpbf16ps %%tmm7, %%tmm6, %%tmm4\n tdpbf16ps %%tmm7, %%tmm6, %%tmm5\n"
      "dec %0\n jnz 1b\n"
      "ldtilecfg %1\n"
      : "+r"(rounds), "=m"(before)
      : "m"(config), "r"(numbers[0]), "r"(numbers[1]), "r"(int64_t(64)), "m"(numbers)
      : "cc", "memory");
}
#endif

#if defined(__x86_64__)
#define SPARSEKERN_IN_REGISTER(v) "+x"(v)
#elif defined(__aarch64__)
#define SPARSEKERN_IN_REGISTER(v) "+w"(v)
#else
#define SPARSEKERN_IN_REGISTER(v) "+m"(v)
#endif

typedef float Vector4 __attribute__((vector_size(16)));

void chains_portable(int64_t rounds) {
  Vector4 sums[kChains] = {};
  Vector4 factor = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t i = 0; i < rounds; ++i) {
    for (Vector4& sum : sums) sum = sum * factor + factor;
    for (Vector4& sum : sums) __asm__ volatile("" : SPARSEKERN_IN_REGISTER(sum));
  }
}

void one_chain_portable(int64_t rounds) {
  Vector4 sum = {}, factor = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t i = 0; i < rounds * kChains; ++i) {
    sum = sum * factor + factor;
    __asm__ volatile("" : SPARSEKERN_IN_REGISTER(sum));
  }
}

void loading_portable(int64_t rounds) {
  Vector4 sums[kChains] = {};
  Vector4 factor = {0.5f, 0.5f, 0.5f, 0.5f};
  float weight = 0.5f;
  for (int64_t i = 0; i < rounds; ++i) {
    for (Vector4& sum : sums) {
      __asm__ volatile("" : "+m"(factor), "+m"(weight));
      sum += Vector4{weight, weight, weight, weight} * factor;
    }
    for (Vector4& sum : sums) __asm__ volatile("" : SPARSEKERN_IN_REGISTER(sum));
  }
}

int64_t most_lanes() {
  return isa_limit() >= Isa::kAvx512 ? 16 : isa_limit() >= Isa::kAvx2 ? 8 : 4;
}

// Of the widths that the level in use has.
Loops loops_of(int64_t lanes) {
#if defined(__x86_64__)
  if (isa_limit() != Isa::kPortable) {
    if (lanes == 4) return kLoops_avx2_4_lanes;
    if (lanes == 8) return kLoops_avx2_8_lanes;
    if (lanes == 16 && most_lanes() == 16) return kLoops_avx512_16_lanes;
  }
#endif
  if (lanes == 4) return {chains_portable, one_chain_portable, loading_portable};
  throw std::invalid_argument("lanes: expected 4 to " + std::to_string(most_lanes()) +
                              ", a power of two, got " + std::to_string(lanes));
}

constexpr int64_t kRounds = 100000;

}  // namespace

double multiply_adds_a_second(int64_t lanes, double seconds) {
  const Loops loops = loops_of(lanes);
  return kChains * best_rounds_a_second(kRounds, seconds, loops.in_registers);
}

double multiply_add_latency(double seconds) {
  const Loops loops = loops_of(most_lanes());
  return 1 / (kChains * best_rounds_a_second(kRounds, seconds, loops.one_chain));
}

double loads_a_second(int64_t lanes, double seconds) {
  const Loops loops = loops_of(lanes);
  return kLoads * best_rounds_a_second(kRounds, seconds, loops.loading);
}

double fma_peak_gflops(double seconds, Numbers numbers) {
#if defined(__x86_64__)
  if (isa_limit() == Isa::kAmxBf16 && numbers == Numbers::kBFloat16) {
    return 2e-9 * kTileMultiplyAdds * kTileChains *
           best_rounds_a_second(kRounds / 16, seconds, chains_amx_bf16);
  }
  if (isa_limit() == Isa::kAvx512Bf16 && numbers == Numbers::kBFloat16) {
    return 2e-9 * 32 * kChains * best_rounds_a_second(kRounds, seconds, chains_avx512_bf16);
  }
#endif
  return 2e-9 * double(most_lanes()) * multiply_adds_a_second(most_lanes(), seconds);
}

double widened_a_second(double seconds) {
  constexpr int64_t kNumbers = 64 * 1024;  // 384 KiB of both: in L2, as a chunk of weights
  std::vector<uint16_t> from(kNumbers, 0x3f80);
  std::vector<float> to(kNumbers);
  const auto widen = [&](int64_t rounds) {
    for (int64_t round = 0; round < rounds; ++round) {
      for (int64_t i = 0; i < kNumbers; ++i) {
        const uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(&to[i], &bits, sizeof bits);
      }
      __asm__ volatile("" : : "r"(to.data()) : "memory");
    }
  };
  return double(kNumbers) * best_rounds_a_second(4, seconds, widen);
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
  const auto read = [&](int64_t) {
    Reg a{}, b{}, c{}, d{};
    for (int64_t i = 0; i < count; i += kStep) {
      a ^= data[i] ^ data[i + 1];
      b ^= data[i + 2] ^ data[i + 3];
      c ^= data[i + 4] ^ data[i + 5];
      d ^= data[i + 6] ^ data[i + 7];
    }
    const Reg all = a ^ b ^ c ^ d;
    __asm__ volatile("" : : "m"(all));
  };
  return 1e-9 * double(count) * sizeof(Reg) * best_rounds_a_second(1, seconds, read);
}

}  // namespace sparsekern
