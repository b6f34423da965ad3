#include "core/cpu_info.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif

namespace sparsekern {
namespace {

#if defined(__x86_64__)
unsigned long long enabled_register_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

// Tiles of bfloat16, and the vector instructions that fill them.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, avx512_vbmi2 = 1u << 6;
  return (d & amx_bf16) && (d & amx_tile) && (c & avx512_vbmi2);
}

// Linux from 5.16 on makes room for tiles only when asked, once for all threads of the process
// (Documentation/arch/x86/xstate.rst).
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kPortable;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12);
  if (!osxsave || !fma) return Isa::kPortable;
  const unsigned long long state = enabled_register_state();
  const unsigned long long ymm = 0x6, zmm = 0xe6;  // SSE+AVX; and opmask+ZMM halves
  const unsigned long long tiles = 0x60000;        // their shapes and contents
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::kPortable;
  const bool avx2 = b & (1u << 5);
  const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
  const bool avx512 = (b & (f | dq | bw | vl)) == (f | dq | bw | vl);
  if (avx512 && avx2 && (state & zmm) == zmm) {
    const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
    if (!bf16) return Isa::kAvx512;
    return has_tiles() && (state & tiles) == tiles && may_use_tiles() ? Isa::kAmxBf16
                                                                      : Isa::kAvx512Bf16;
  }
  if (avx2 && (state & ymm) == ymm) return Isa::kAvx2;
  return Isa::kPortable;
}

bool made_by_amd() {
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return false;
  return b == signature_AMD_ebx && d == signature_AMD_edx && c == signature_AMD_ecx;
}
#else
Isa detect() { return Isa::kPortable; }
bool made_by_amd() { return false; }
#endif

Isa detected() {
  static const Isa isa = detect();
  return isa;
}

std::atomic<int>& limit() {
  static std::atomic<int> value{static_cast<int>(detected())};
  return value;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmxBf16:
      return "amx_bf16";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool isa_supported(Isa isa) { return isa <= detected(); }

Isa isa_limit() { return static_cast<Isa>(limit().load(std::memory_order_relaxed)); }

bool set_isa_limit(Isa isa) {
  if (!isa_supported(isa)) return false;
  limit().store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

bool has_cores(Cores cores) {
  static const bool amd = made_by_amd();
  return cores == Cores::kAny || amd;
}

int64_t l1_data_bytes() {
  static const int64_t bytes = [] {
    long found = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    found = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
    return found > 0 ? found : 32 * 1024;
  }();
  return bytes;
}

}  // namespace sparsekern
