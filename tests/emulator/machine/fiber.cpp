#include "machine/fiber.h"

#include <cstdint>

namespace emulator {

// makecontext passes ints alone.
void Fiber::enter(unsigned low, unsigned high) {
  auto* self = reinterpret_cast<Fiber*>(uint64_t{high} << 32 | low);
  self->body_(self->argument_);
  self->ended_ = true;
  self->pause();
}

void Fiber::start(void (*body)(void*), void* argument) {
  if (!stack_) stack_.reset(new char[kStack]);
  body_ = body;
  argument_ = argument;
  ended_ = false;
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStack;
  inside_.uc_link = nullptr;
  const auto self = reinterpret_cast<uint64_t>(this);
  makecontext(&inside_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, unsigned(self),
              unsigned(self >> 32));
}

void Fiber::resume() { swapcontext(&outside_, &inside_); }

void Fiber::pause() { swapcontext(&inside_, &outside_); }

}  // namespace emulator
