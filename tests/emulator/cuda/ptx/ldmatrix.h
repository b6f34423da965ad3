// Stands in for csrc/cuda/ptx/ldmatrix.h, by the matrices: PTX ISA 9.7.14.5.15, figure of an 8 x 8
// matrix of 16-bit elements over the lanes of a warp.
#pragma once

#include "cuda/ptx/memory.h"

namespace sparsekern::ptx {

struct MatrixLoad {
  Shared row;
  uint32_t* d;
  emulator::Site site;
};

template <bool kTrans>
void load_matrices(void* const* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t numbers[8][8];
    for (int row = 0; row < 8; ++row) {
      const auto* owner = static_cast<const MatrixLoad*>(lanes[8 * matrix + row]);
      emulator::read_shared_for_warp(owner->row.at, numbers[row], 16, owner->site);
    }
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        // The lane and the half of its word that receive this element.
        const int line = kTrans ? column : row, place = kTrans ? row : column;
        uint32_t& word = static_cast<const MatrixLoad*>(lanes[4 * line + place / 2])->d[matrix];
        const int shift = 16 * (place % 2);
        word = (word & ~(0xFFFFu << shift)) | uint32_t{numbers[row][column]} << shift;
      }
    }
  }
}

template <bool kTrans>
void load_matrices(uint32_t (&d)[4], Shared row, emulator::Site site) {
  emulator::count_shared(emulator::Kind::kMatrixLoad, row.at, 16, site);
  MatrixLoad mine{row, d, site};
  emulator::meet_warp(kTrans ? "ldmatrix.trans" : "ldmatrix", site, &mine, load_matrices<kTrans>);
}

inline void ldmatrix(uint32_t (&d)[4], Shared row, emulator::Site site = emulator::Site::here()) {
  load_matrices<false>(d, row, site);
}

inline void ldmatrix_trans(uint32_t (&d)[4], Shared row,
                           emulator::Site site = emulator::Site::here()) {
  load_matrices<true>(d, row, site);
}

}  // namespace sparsekern::ptx
