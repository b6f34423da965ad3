// Stands in for csrc/cuda/ptx/movmatrix.h, by the matrix: PTX ISA 9.7.14.5.17.
#pragma once

#include <cuda_runtime.h>

namespace sparsekern::ptx {

inline uint32_t movmatrix_trans(uint32_t row_pair, emulator::Site site = emulator::Site::here()) {
  uint32_t words[2] = {row_pair, 0};
  emulator::meet_warp("movmatrix", site, words, [](void* const* lanes) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        const auto* from = static_cast<const uint32_t*>(lanes[4 * row + column / 2]);
        auto* to = static_cast<uint32_t*>(lanes[4 * column + row / 2]);
        to[1] |= (from[0] >> 16 * (column % 2) & 0xFFFF) << 16 * (row % 2);
      }
    }
  });
  return words[1];
}

}  // namespace sparsekern::ptx
