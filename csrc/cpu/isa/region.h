// Opens and closes a region of code compiled for one instruction set, whatever the flags of the
// file: no instruction of the region can leak into code that runs before dispatch.
// System headers must be included before the region opens.
#pragma once

#define SPARSEKERN_PRAGMA(x) _Pragma(#x)
#if defined(SPARSEKERN_REGION_BEGIN)  // emptied by tests that emulate the instructions
#elif defined(__clang__)
#define SPARSEKERN_REGION_BEGIN(features) \
  SPARSEKERN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SPARSEKERN_REGION_END SPARSEKERN_PRAGMA(clang attribute pop)
#else
#define SPARSEKERN_REGION_BEGIN(features) \
  SPARSEKERN_PRAGMA(GCC push_options) SPARSEKERN_PRAGMA(GCC target(features))
#define SPARSEKERN_REGION_END SPARSEKERN_PRAGMA(GCC pop_options)
#endif

#define SPARSEKERN_INLINE inline __attribute__((always_inline))
// For functions whose loops need all the registers: inlined, they would share them with the caller.
#define SPARSEKERN_NOINLINE __attribute__((noinline))
#define SPARSEKERN_UNROLL SPARSEKERN_PRAGMA(GCC unroll 64)
