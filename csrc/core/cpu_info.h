// Instruction-set levels that kernels exist for.
#pragma once

namespace sparsekern {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };
constexpr int kIsaLevels = 4;

const char* isa_name(Isa isa);

// What CPUID offers and XGETBV says the operating system saves.
bool isa_supported(Isa isa);

// The level that automatic choice stays within. Starts at the highest supported one.
Isa isa_limit();

// Lowers (or restores) the limit; returns false and changes nothing if the CPU lacks the level.
bool set_isa_limit(Isa isa);

}  // namespace sparsekern
