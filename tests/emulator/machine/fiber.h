// A flow of control with a stack of its own.
#pragma once

#include <ucontext.h>

#include <memory>

namespace emulator {

class Fiber {
 public:
  // Begins with `body(argument)` at the next resume.
  void start(void (*body)(void*), void* argument);
  // Runs it until it pauses or ends.
  void resume();
  // Back to whoever resumed it.
  void pause();
  // Set when `body` has returned.
  bool ended() const { return ended_; }

 private:
  static void enter(unsigned low, unsigned high);

  static constexpr size_t kStack = 256 * 1024;
  std::unique_ptr<char[]> stack_;
  ucontext_t inside_, outside_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool ended_ = false;
};

}  // namespace emulator
