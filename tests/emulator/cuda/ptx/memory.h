// Stands in for csrc/cuda/ptx/memory.h: every access is checked and counted.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/ptx/global.h"
#include "machine/memory.h"

namespace sparsekern::ptx {

struct Shared {
  uint32_t at;

  Shared operator+(uint32_t bytes) const { return {at + bytes}; }
};

inline Shared shared_memory() { return {emulator::kSharedBase}; }

template <class T>
T load(Global<const T> from, emulator::Site site = emulator::Site::here()) {
  emulator::count_global(emulator::Kind::kGlobalLoad, reinterpret_cast<uint64_t>(from.at),
                         sizeof(T), site);
  T value;
  emulator::read_global(from.at, &value, sizeof(T), site);
  return value;
}

template <class T>
void store(Global<T> to, T value, emulator::Site site = emulator::Site::here()) {
  emulator::count_global(emulator::Kind::kGlobalStore, reinterpret_cast<uint64_t>(to.at), sizeof(T),
                         site);
  emulator::write_global(to.at, &value, sizeof(T), site);
}

template <class T>
T load(Shared from, emulator::Site site = emulator::Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
  emulator::count_shared(emulator::Kind::kSharedLoad, from.at, sizeof(T), site);
  T value;
  emulator::read_shared(from.at, &value, sizeof(T), site);
  return value;
}

template <class T>
void store(Shared to, T value, emulator::Site site = emulator::Site::here()) {
  static_assert(sizeof(T) == 4);
  emulator::count_shared(emulator::Kind::kSharedStore, to.at, sizeof(T), site);
  emulator::write_shared(to.at, &value, sizeof(T), site);
}

}  // namespace sparsekern::ptx
