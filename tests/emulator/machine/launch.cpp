// A launch, and what tests ask about it.
#include <map>

#include "cuda_runtime.h"
#include "machine/counters.h"
#include "machine/memory.h"

namespace emulator {

namespace {

std::string the_fault, the_counters;
uint32_t most_shared_bytes = 0;

std::map<const void*, uint32_t> allowed;  // shared memory, by kernel

// What launches on a GPU refuse too.
bool possible(dim3 grid, dim3 size, uint32_t shared_bytes, const void* kernel) {
  const auto more = allowed.find(kernel);
  const uint32_t most = more == allowed.end() ? 48 * 1024 : more->second;
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  return grid.x > 0 && grid.x <= 0x7FFFFFFF && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
         grid.z <= 65535 && threads > 0 && threads <= 1024 && shared_bytes <= most &&
         shared_bytes <= 227 * 1024;
}

}  // namespace

void allow_shared(const void* kernel, uint32_t bytes) { allowed[kernel] = bytes; }

cudaError_t launch(dim3 grid, dim3 size, uint32_t shared_bytes, const void* kernel,
                   void (*body)(void*), void* argument) {
  if (!possible(grid, size, shared_bytes, kernel)) return cudaErrorInvalidConfiguration;
  begin_launch();
  if (shared_bytes > most_shared_bytes) most_shared_bytes = shared_bytes;
  try {
    run(grid, size, shared_bytes, body, argument);
    return cudaSuccess;
  } catch (const Fault& fault) {
    the_fault = fault.what();
    return cudaErrorLaunchFailure;
  }
}

}  // namespace emulator

extern "C" {

// What the last launch that failed did wrong.
const char* emulator_fault() { return emulator::the_fault.c_str(); }

// Launches run their last block first from now on, or no more.
void emulator_run_backwards(int yes) { emulator::run_backwards(yes != 0); }

// The most shared memory that a launch asked for since the last call.
uint32_t emulator_shared_bytes() {
  const uint32_t most = emulator::most_shared_bytes;
  emulator::most_shared_bytes = 0;
  return most;
}

// The counters since the last call, as JSON.
const char* emulator_counters() {
  emulator::the_counters = emulator::counters_json();
  emulator::clear_counters();
  return emulator::the_counters.c_str();
}

}  // extern "C"
