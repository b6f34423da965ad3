// Global and shared memory that watch who reads and writes what.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "machine/machine.h"

namespace emulator {

// ---- global memory: the buffers that a launch was given
// ------------------------------------------

// Faults unless the bytes lie in one buffer, at a multiple of their number. Blocks run one after
// another here, and at once on a GPU: what one thread of a launch writes no other one may write,
// and none may read, whoever comes first.
void read_global(const void* from, void* to, int bytes, Site site);
void write_global(void* to, const void* from, int bytes, Site site);

// ---- shared memory of the block
// --------------------------------------------------------------------

// What is known of four bytes of it. `epoch` counts the block's barriers, `warp_epoch` those of the
// thread's warp: two accesses are ordered if a barrier of the block lies between them, or one of
// the warp of both.
struct Cell {
  static constexpr int kNobody = -1, kSeveral = -2;
  int writer = kNobody;
  uint32_t write_epoch = 0, write_warp_epoch = 0;
  int reader = kNobody, reading_warp = kNobody;  // in the epoch below
  uint32_t read_epoch = 0, read_warp_epoch = 0;
  int copier = kNobody;  // whose cp.async is under way to here
};

// Where it begins: at a multiple of 128 as kernels ask for, and not at zero, so that one that takes
// it for that is found out.
constexpr uint32_t kSharedBase = 1024 + 128;

void clear_shared(uint32_t bytes);
void read_shared(uint32_t from, void* to, int bytes, Site site);
void write_shared(uint32_t to, const void* from, int bytes, Site site);
// Of a row of ldmatrix, on behalf of all lanes of the warp.
void read_shared_for_warp(uint32_t from, void* to, int bytes, Site site);

void start_copy(uint32_t to, const void* from, bool inside, Site site);
void commit_copies();
void wait_for_copies(size_t pending);

// A launch begins: what earlier ones wrote may be read and written again.
void begin_launch();

}  // namespace emulator
