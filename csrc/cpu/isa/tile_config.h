// What LDTILECFG reads (Intel SDM, volume 1, 18.2).
#pragma once

#include <stdint.h>

#include "cpu/isa/region.h"

namespace sparsekern {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as the instruction reads it");

// Eight tiles of 16 rows of 64 bytes.
static SPARSEKERN_INLINE TileConfig full_tiles() {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  return config;
}

}  // namespace sparsekern
