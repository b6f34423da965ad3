// A block of CUDA threads on one thread of the CPU. Each CUDA thread is a fiber that runs until it
// must wait for others: at a barrier, or where the lanes of a warp do something together.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine/fiber.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr int kWarp = 32;

// What a kernel did wrong. It ends the launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in a kernel's source.
struct Site {
  const char* file;
  int line;

  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return file == other.file && line == other.line; }
  std::string text() const;
};

// What a thread waits at.
struct Stop {
  const char* what = nullptr;
  Site site{};
  void* operands = nullptr;
};

enum class State { kReady, kWarp, kBlock, kDone };

struct Copy {
  uint32_t to;
  uint8_t bytes[16];
  Site site;
};

struct Thread {
  Fiber fiber;
  dim3 index;
  int number = 0;
  State state = State::kReady;
  Stop stop;
  std::vector<Copy> open_copies;                  // of cp.async, not in a group yet
  std::vector<std::vector<Copy>> pending_groups;  // not waited for yet, oldest first

  int warp() const { return number / kWarp; }
  int lane() const { return number % kWarp; }
};

// One block at a time; a launch runs its blocks one after another.
struct Block {
  dim3 index, grid, size;
  std::vector<Thread> threads;
  uint32_t epoch = 0;                 // barriers that the block has passed
  std::vector<uint32_t> warp_epochs;  // and its warps, alone
  Thread* running = nullptr;
};

Block& block();
inline Thread& thread() { return *block().running; }

// Throws Fault with the block and thread that run.
[[noreturn]] void fail(const std::string& what, Site site);

// The running thread waits at `stop` until all lanes of its warp do; the last to come calls `all`
// with the operands of each.
using Together = void (*)(void* const* operands);
void meet_warp(const char* what, Site site, void* operands, Together all);
void meet_block(Site site);

// Runs `body(argument)` as every thread of every block.
void run(dim3 grid, dim3 size, uint32_t shared_bytes, void (*body)(void*), void* argument);

// Whether launches run their last block first: a GPU promises no order.
void run_backwards(bool yes);

}  // namespace emulator
