// Instruction-set levels that kernels exist for.
#pragma once

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

}  // namespace sparsekern
