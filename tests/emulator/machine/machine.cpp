#include "machine/machine.h"

#include <cstring>

#include "machine/counters.h"
#include "machine/memory.h"

namespace emulator {

namespace {

Block the_block;
void (*the_body)(void*);
bool backwards = false;

std::string text(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string text(const Stop& stop) {
  return stop.what == nullptr ? "the end of the kernel"
                              : std::string(stop.what) + " at " + stop.site.text();
}

// A fault within a fiber is carried to who runs it: no exception may leave its stack.
std::string the_fault;

void run_thread(void* argument) {
  try {
    the_body(argument);
    Thread& t = thread();
    if (!t.open_copies.empty() || !t.pending_groups.empty()) {
      const Copy& copy =
          t.pending_groups.empty() ? t.open_copies.front() : t.pending_groups.front().front();
      fail("ends while its cp.async is under way: nobody waited for it", copy.site);
    }
  } catch (const Fault& fault) {
    the_fault = fault.what();
  }
  thread().state = State::kDone;
  thread().stop = Stop{};
}

void wait(State state, const Stop& stop) {
  Thread& t = thread();
  t.state = state;
  t.stop = stop;
  t.fiber.pause();
}

// Why nobody can go on: who waits at what.
[[noreturn]] void fail_stuck() {
  std::string who;
  const Block& b = block();
  for (size_t i = 0; i < b.threads.size(); ++i) {
    const Thread& t = b.threads[i];
    if (i > 0 && text(t.stop) == text(b.threads[i - 1].stop)) continue;
    who += (who.empty() ? "" : "; ") + std::string("from thread ") + std::to_string(i) + " on at " +
           text(t.stop);
  }
  throw Fault(std::string("block ") + text(b.index) +
              ": threads wait for others that do not come: " + who);
}

void run_block(dim3 size, uint32_t shared_bytes, void* argument) {
  Block& b = block();
  const unsigned count = size.x * size.y * size.z;
  b.size = size;
  b.epoch = 0;
  b.threads.resize(count);
  b.warp_epochs.assign((count + kWarp - 1) / kWarp, 0);
  clear_shared(shared_bytes);
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = b.threads[i];
    t.index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
    t.number = int(i);
    t.state = State::kReady;
    t.stop = Stop{};
    t.open_copies.clear();
    t.pending_groups.clear();
    t.fiber.start(run_thread, argument);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (Thread& t : b.threads) {
      if (t.state != State::kReady) continue;
      progress = true;
      b.running = &t;
      t.fiber.resume();
      if (!the_fault.empty()) throw Fault(the_fault);
    }
  }
  for (const Thread& t : b.threads) {
    if (t.state != State::kDone) fail_stuck();
  }
  settle_counters();
}

}  // namespace

Block& block() { return the_block; }

std::string Site::text() const {
  const char* name = std::strrchr(file, '/');
  return std::string(name == nullptr ? file : name + 1) + ":" + std::to_string(line);
}

void fail(const std::string& what, Site site) {
  throw Fault(std::string("block ") + text(block().index) + ", thread " +
              std::to_string(thread().number) + ", " + site.text() + ": " + what);
}

void meet_warp(const char* what, Site site, void* operands, Together all) {
  Block& b = block();
  Thread& me = thread();
  Thread* lanes = &b.threads[size_t(me.warp()) * kWarp];
  if (size_t(me.warp() + 1) * kWarp > b.threads.size()) {
    fail(std::string(what) + " of a warp without all its lanes", site);
  }
  me.stop = {what, site, operands};
  void* everybody[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Thread& other = lanes[lane];
    if (&other != &me && other.state != State::kWarp) return wait(State::kWarp, me.stop);
    if (&other != &me && !(other.stop.site == site && std::strcmp(other.stop.what, what) == 0)) {
      fail(std::string(what) + " by a part of the warp: lane " + std::to_string(lane) + " is at " +
               text(other.stop),
           site);
    }
    everybody[lane] = other.stop.operands;
  }
  all(everybody);
  for (int lane = 0; lane < kWarp; ++lane) lanes[lane].state = State::kReady;
}

void meet_block(Site site) {
  Block& b = block();
  Thread& me = thread();
  me.stop = {"__syncthreads", site, nullptr};
  for (const Thread& other : b.threads) {
    if (&other != &me && other.state != State::kBlock) return wait(State::kBlock, me.stop);
    if (!(other.stop.site == site)) {
      fail("__syncthreads by a part of the block: thread " + std::to_string(other.number) +
               " is at " + text(other.stop),
           site);
    }
  }
  ++b.epoch;
  for (Thread& other : b.threads) other.state = State::kReady;
}

void run(dim3 grid, dim3 size, uint32_t shared_bytes, void (*body)(void*), void* argument) {
  the_body = body;
  the_fault.clear();
  block().grid = grid;
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t number = backwards ? count - 1 - i : i;
    block().index = dim3(unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                         unsigned(number / grid.x / grid.y));
    run_block(size, shared_bytes, argument);
  }
}

void run_backwards(bool yes) { backwards = yes; }

}  // namespace emulator
