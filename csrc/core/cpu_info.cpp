#include "core/cpu_info.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sparsekern {
namespace {

#if defined(__x86_64__)
unsigned long long enabled_register_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

Isa detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kPortable;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12);
  if (!osxsave || !fma) return Isa::kPortable;
  const unsigned long long state = enabled_register_state();
  const unsigned long long ymm = 0x6, zmm = 0xe6;  // SSE+AVX; and opmask+ZMM halves
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::kPortable;
  const bool avx2 = b & (1u << 5);
  const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
  const bool avx512 = (b & (f | dq | bw | vl)) == (f | dq | bw | vl);
  if (avx512 && avx2 && (state & zmm) == zmm) {
    const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
    return bf16 ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  if (avx2 && (state & ymm) == ymm) return Isa::kAvx2;
  return Isa::kPortable;
}
#else
Isa detect() { return Isa::kPortable; }
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

}  // namespace sparsekern
