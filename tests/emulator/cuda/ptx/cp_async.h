// Stands in for csrc/cuda/ptx/cp_async.h: copies land when they are waited for, and not before.
#pragma once

#include "cuda/ptx/memory.h"

namespace sparsekern::ptx {

inline void cp_async_16(Shared to, Global<const uint4> from, bool inside,
                        emulator::Site site = emulator::Site::here()) {
  if (inside) {
    emulator::count_global(emulator::Kind::kCopy, reinterpret_cast<uint64_t>(from.at), 16, site);
  }
  emulator::count_shared(emulator::Kind::kCopy, to.at, 16, site);
  emulator::start_copy(to.at, from.at, inside, site);
}

inline void cp_async_commit() { emulator::commit_copies(); }

template <int kPending>
void cp_async_wait() {
  static_assert(kPending >= 0);
  emulator::wait_for_copies(kPending);
}

}  // namespace sparsekern::ptx
