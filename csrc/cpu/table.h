// What the kernel tables have in common: symbols that exist on some machines only, and names.
#pragma once

#include <cstring>

#if defined(__x86_64__)
#define SPARSEKERN_ON_X86(kernel) kernel
#else
#define SPARSEKERN_ON_X86(kernel) nullptr
#endif

// The function of a kernel that needs an instruction set, or null where it is not compiled.
#define SPARSEKERN_SYMBOL_kPortable(name) sparsekern_##name
#define SPARSEKERN_SYMBOL_kAvx2(name) SPARSEKERN_ON_X86(sparsekern_##name)
#define SPARSEKERN_SYMBOL_kAvx512(name) SPARSEKERN_ON_X86(sparsekern_##name)
#define SPARSEKERN_SYMBOL_kAvx512Bf16(name) SPARSEKERN_ON_X86(sparsekern_##name)
#define SPARSEKERN_SYMBOL_kAmxBf16(name) SPARSEKERN_ON_X86(sparsekern_##name)

namespace sparsekern {

// The line of that name; null if there is none.
template <class Line, int kLines>
const Line* find_named(const Line (&table)[kLines], const char* name) {
  for (const Line& line : table) {
    if (std::strcmp(line.name, name) == 0) return &line;
  }
  return nullptr;
}

}  // namespace sparsekern
