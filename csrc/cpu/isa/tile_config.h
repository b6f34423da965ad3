// What LDTILECFG reads (Intel SDM, volume 1, 18.2).
#pragma once

#include <stdint.h>

namespace sparsekern {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as the instruction reads it");

}  // namespace sparsekern
