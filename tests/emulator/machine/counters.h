// What the memory accesses and instructions of a launch cost.
//
// Accesses are counted by instruction of a warp: the nth time that lanes pass a place in the source
// counts as one instruction.
#pragma once

#include <cstdint>
#include <string>

#include "machine/machine.h"

namespace emulator {

enum class Kind { kGlobalLoad, kGlobalStore, kCopy, kSharedLoad, kSharedStore, kMatrixLoad };

// The running thread accesses global memory: counted in sectors of 32 bytes.
void count_global(Kind kind, uint64_t address, int bytes, Site site);
// Or shared memory: counted in passes of at most 128 bytes in different banks.
void count_shared(Kind kind, uint32_t address, int bytes, Site site);
// An instruction of the whole warp.
void count_instruction(const char* name);

// At the end of a block: its instructions are complete.
void settle_counters();
void clear_counters();
// As JSON: instructions by name, and accesses by kind and place, each with its number of
// instructions, its bytes, and the passes or sectors that it took and the least that it could have.
std::string counters_json();

}  // namespace emulator
