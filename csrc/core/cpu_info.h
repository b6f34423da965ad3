// What kernels have to know of the CPU: its instruction set, as one of the levels that they exist
// for, and its first data cache.
#pragma once

#include <stdint.h>

namespace sparsekern {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmxBf16 = 4 };
constexpr int kIsaLevels = 5;

const char* isa_name(Isa isa);

// What CPUID offers and the operating system saves. Asks Linux for the state of tiles, which it
// gives to those who ask.
bool isa_supported(Isa isa);

// The level that automatic choice stays within. Starts at the highest supported one.
Isa isa_limit();

// Lowers (or restores) the limit; returns false and changes nothing if the CPU lacks the level.
bool set_isa_limit(Isa isa);

// Cores that a kernel may be meant for, where one design's are told from another's.
enum class Cores : int { kAny, kAmd };

// Whether this CPU has such cores.
bool has_cores(Cores cores);

// Of the first data cache; 32 KiB where the system does not say.
int64_t l1_data_bytes();

}  // namespace sparsekern
