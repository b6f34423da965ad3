// AMX-BF16 in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// The tiles of each thread. Those that a kernel uses must have been shaped before.
struct EmulatedTiles {
  uint8_t config[64];  // as LDTILECFG reads it
  uint8_t rows[8][16][64];

  int row_bytes(int tile) const { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }
  int row_count(int tile) const { return config[48 + tile]; }
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles = {};
  return tiles;
}

#undef _tile_storeconfig
#define _tile_storeconfig emulated_tile_storeconfig
inline void emulated_tile_storeconfig(void* p) { std::memcpy(p, emulated_tiles().config, 64); }

#undef _tile_loadconfig
#define _tile_loadconfig emulated_tile_loadconfig
inline void emulated_tile_loadconfig(const void* p) {
  std::memcpy(emulated_tiles().config, p, 64);
  std::memset(emulated_tiles().rows, 0, sizeof emulated_tiles().rows);
}

#undef _tile_zero
#define _tile_zero emulated_tile_zero
inline void emulated_tile_zero(int tile) {
  if (emulated_tiles().row_count(tile) == 0) std::abort();
  std::memset(emulated_tiles().rows[tile], 0, sizeof emulated_tiles().rows[tile]);
}

#undef _tile_loadd
#define _tile_loadd emulated_tile_loadd
inline void emulated_tile_loadd(int tile, const void* p, int64_t stride) {
  emulated_tile_zero(tile);
  for (int i = 0; i < emulated_tiles().row_count(tile); ++i) {
    std::memcpy(emulated_tiles().rows[tile][i], static_cast<const char*>(p) + i * stride,
                size_t(emulated_tiles().row_bytes(tile)));
  }
}

#undef _tile_stored
#define _tile_stored emulated_tile_stored
inline void emulated_tile_stored(int tile, void* p, int64_t stride) {
  for (int i = 0; i < emulated_tiles().row_count(tile); ++i) {
    std::memcpy(static_cast<char*>(p) + i * stride, emulated_tiles().rows[tile][i],
                size_t(emulated_tiles().row_bytes(tile)));
  }
}

#undef _tile_dpbf16ps
#define _tile_dpbf16ps emulated_tile_dpbf16ps
inline void emulated_tile_dpbf16ps(int sums, int a, int b) {
  EmulatedTiles& tiles = emulated_tiles();
  const auto number = [](const uint8_t* p) {  // denormal ones count as zero
    const uint32_t bits = uint32_t(p[0] | p[1] << 8) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value;
  };
  for (int m = 0; m < tiles.row_count(sums); ++m) {
    for (int n = 0; n < tiles.row_bytes(sums) / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles.rows[sums][m] + 4 * n, sizeof sum);
      for (int k = 0; k < tiles.row_bytes(a) / 2; ++k) {
        sum += number(tiles.rows[a][m] + 2 * k) * number(tiles.rows[b][k / 2] + 4 * n + k % 2 * 2);
      }
      std::memcpy(tiles.rows[sums][m] + 4 * n, &sum, sizeof sum);
    }
  }
}
