// AMX-BF16: products of whole tiles, 16 outputs x 32 inputs by 32 inputs x 16 tokens, summed in
// float32. Numbers too small to be normal count as zero.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/isa/avx512_bf16.h"
#include "cpu/isa/tile_config.h"

namespace sparsekern::amx_bf16 {

struct Tiles16 : avx512_bf16::Pairs16 {
  static constexpr int64_t kTileOutputs = 16, kTileInputs = 32, kTilePairs = 16;
  static constexpr int64_t kTileWeights = kTileOutputs * kTileInputs;

  // Gives the tiles this shape; how they were before. It is to be set up again: other libraries may
  // look at their own record of it. (No destructor does so: the file would need the C++ runtime.)
  static SPARSEKERN_INLINE TileConfig shape_tiles() {
    TileConfig before;
    _tile_storeconfig(&before);
    written(&before);
    reshape_tiles(full_tiles());
    return before;
  }
  static SPARSEKERN_INLINE void reshape_tiles(const TileConfig& config) {
    written(&config);
    _tile_loadconfig(&config);
  }

  // gcc does not know all that tile instructions read and write (gcc 12, amxtileintrin.h).
  static SPARSEKERN_INLINE void written(const void* p) {
    __asm__ volatile("" : : "r"(p) : "memory");
  }

  // sums[m] = weights [steps][16 outputs][32 inputs] times MB tiles of tokens. inputs(step) is
  // where those of a step lie: [16 pairs of inputs][MB][16 tokens][2], its rows `width` numbers
  // apart. Tile numbers are part of an instruction, so they stand here one by one.
  template <int MB, class Inputs>
  static SPARSEKERN_INLINE void multiply(const BFloat16* weights, int64_t steps, Inputs& inputs,
                                         int64_t width, float (*sums)[16][16]) {
    static_assert(1 <= MB && MB <= 4, "four tiles of sums");
    _tile_zero(0);
    if constexpr (MB > 1) _tile_zero(1);
    if constexpr (MB > 2) _tile_zero(2);
    if constexpr (MB > 3) _tile_zero(3);
    const int64_t stride = width * int64_t(sizeof(BFloat16));
    for (int64_t step = 0; step < steps; ++step, weights += kTileWeights) {
      const BFloat16* const row = inputs(step);
      _tile_loadd(4, weights, 64);
      _tile_loadd(5, row, stride);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (MB > 1) {
        _tile_loadd(6, row + kLine, stride);
        _tile_dpbf16ps(1, 4, 6);
      }
      if constexpr (MB > 2) {
        _tile_loadd(7, row + 2 * kLine, stride);
        _tile_dpbf16ps(2, 4, 7);
      }
      if constexpr (MB > 3) {
        _tile_loadd(5, row + 3 * kLine, stride);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, sums[0], 64);
    if constexpr (MB > 1) _tile_stored(1, sums[1], 64);
    if constexpr (MB > 2) _tile_stored(2, sums[2], 64);
    if constexpr (MB > 3) _tile_stored(3, sums[3], 64);
  }

  // The same for two strips of outputs, which lie one after the other and take the same inputs:
  // every tile that is loaded serves two products.
  template <int MB, class Inputs>
  static SPARSEKERN_INLINE void multiply_two(const BFloat16* weights, int64_t steps, Inputs& inputs,
                                             int64_t width, float (*sums)[16][16],
                                             float (*other_sums)[16][16]) {
    static_assert(1 <= MB && MB <= 2, "four tiles of sums");
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (MB > 1) _tile_zero(2);
    if constexpr (MB > 1) _tile_zero(3);
    const int64_t stride = width * int64_t(sizeof(BFloat16));
    const BFloat16* other = weights + steps * kTileWeights;
    for (int64_t step = 0; step < steps; ++step) {
      const BFloat16* const row = inputs(step);
      _tile_loadd(4, weights, 64);
      _tile_loadd(6, row, stride);
      _tile_loadd(5, other, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (MB > 1) {
        _tile_loadd(7, row + kLine, stride);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      weights += kTileWeights;
      other += kTileWeights;
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, other_sums[0], 64);
    if constexpr (MB > 1) _tile_stored(2, sums[1], 64);
    if constexpr (MB > 1) _tile_stored(3, other_sums[1], 64);
  }

  static SPARSEKERN_INLINE Pairs zero_pairs() { return _mm512_setzero_si512(); }

  // Writes the numbers of those of 64 marks that are set, the first of which has the number
  // `first`, and up to 16 numbers beyond; how many there are. Leaves the marks clear.
  static SPARSEKERN_INLINE int64_t take_marks(uint8_t* marks, uint32_t first, uint32_t* numbers) {
    const __m512i bytes = _mm512_loadu_si512(marks);
    const uint64_t set = _mm512_test_epi8_mask(bytes, bytes);
    _mm512_storeu_si512(marks, _mm512_setzero_si512());
    __m512i number =
        _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const uint32_t* const begin = numbers;
    SPARSEKERN_UNROLL
    for (int i = 0; i < 64; i += 16) {
      const __mmask16 some = static_cast<__mmask16>(set >> i);
      _mm512_storeu_si512(numbers, _mm512_maskz_compress_epi32(some, number));
      numbers += __builtin_popcount(some);
      number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
    }
    return numbers - begin;
  }

  static SPARSEKERN_INLINE void store_two(BFloat16* first, BFloat16* second, Pairs v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second), _mm512_extracti64x4_epi64(v, 1));
  }

  // n:m, of m = 4 or 2 n: the weights that the rows g and g + 8 of a group tile keep, among zeros.
  // `row` is that of g in the first of its tiles.
  template <int N>
  static SPARSEKERN_INLINE void expand(const BFloat16* values, const uint8_t* positions,
                                       BFloat16* row) {
    BFloat16* const other_row = row + 8 * kTileInputs;
    if constexpr (N == 1) {
      expand_ones(values, positions, row, other_row);
    } else if constexpr (N == 2) {
      expand_twos(values, positions, row, other_row);
    } else {
      expand_more<N>(values, positions, row);
    }
  }

 private:
  static SPARSEKERN_INLINE void expand_twos(const BFloat16* values, const uint8_t* positions,
                                            BFloat16* row, BFloat16* other_row) {
    // For each pair of positions, low bits first, the bits of its two inputs.
    const __m128i inputs_of = _mm_setr_epi8(0, 3, 5, 9, 3, 0, 6, 10, 5, 6, 0, 12, 9, 10, 12, 0);
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(positions));
    const __m128i low_four = _mm_set1_epi8(15);
    const __m128i low = _mm_shuffle_epi8(inputs_of, _mm_and_si128(places, low_four));
    const __m128i high =
        _mm_shuffle_epi8(inputs_of, _mm_and_si128(_mm_srli_epi16(places, 4), low_four));
    const uint64_t kept = (uint64_t)_mm_cvtsi128_si64(_mm_or_si128(low, _mm_slli_epi16(high, 4)));
    // Values [q][half][row], kept [half][row][q]; both to [row][half][q].
    const __m512i by_row = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    const __m512i weights = _mm512_permutexvar_epi32(by_row, _mm512_loadu_si512(values));
    const auto mask = (uint32_t)((kept & 0xffff) | (kept >> 16 & 0xffff0000));
    const auto other = (uint32_t)((kept >> 16 & 0xffff) | (kept >> 48 << 16));
    _mm512_storeu_si512(row, _mm512_maskz_expand_epi16(mask, weights));
    const __m512i rest = _mm512_castsi256_si512(_mm512_extracti64x4_epi64(weights, 1));
    _mm512_storeu_si512(other_row, _mm512_maskz_expand_epi16(other, rest));
  }

  // 1:4. A row of the tile is [half][q][4 inputs].
  static SPARSEKERN_INLINE void expand_ones(const BFloat16* values, const uint8_t* positions,
                                            BFloat16* row, BFloat16* other_row) {
    // Values [q][half][row], positions [half][row], a byte each with two bits for every q.
    const __m512i value = _mm512_set_epi16(14, 14, 14, 14, 10, 10, 10, 10, 6, 6, 6, 6, 2, 2, 2, 2,
                                           12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i byte =
        _mm512_inserti64x4(_mm512_set1_epi16((short)0x8000), _mm256_set1_epi16((short)0x8002), 1);
    const __m512i shift =
        _mm512_broadcast_i64x4(_mm256_setr_epi16(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6));
    const __m512i input = _mm512_set1_epi64(0x0003000200010000);
    const __m512i weights =
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    int32_t of_group;
    __builtin_memcpy(&of_group, positions, sizeof of_group);
    const __m512i places = _mm512_set1_epi32(of_group);
    const auto expand = [&](int of_pair, BFloat16* to) {
      const __m512i pair = _mm512_set1_epi16((short)of_pair);
      const __m512i bytes = _mm512_shuffle_epi8(places, _mm512_add_epi16(byte, pair));
      const __m512i place = _mm512_and_si512(_mm512_srlv_epi16(bytes, shift), _mm512_set1_epi16(3));
      const __mmask32 kept = _mm512_cmpeq_epi16_mask(place, input);
      _mm512_storeu_si512(
          to, _mm512_maskz_permutexvar_epi16(kept, _mm512_add_epi16(value, pair), weights));
    };
    expand(0, row);
    expand(1, other_row);
  }

  // 4:8 and 8:16. A row of a tile is [q][inputs], of all q or of two.
  template <int N>
  static SPARSEKERN_INLINE void expand_more(const BFloat16* values, const uint8_t* positions,
                                            BFloat16* row) {
    static_assert(N == 4 || N == 8, "positions of four bits, for whole vectors of 64 or 128");
    constexpr int kParts = N / 4, kGroups = 4 / kParts;  // tiles of a half, and groups of them
    uint32_t kept[4 * kParts];                           // [half][row][part], a bit for each input
    for (int i = 0; i < kParts; ++i) {
      const __m512i two = _mm512_cvtepu8_epi16(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(positions + 32 * i)));
      const __m512i one = _mm512_set1_epi16(1);
      const __m512i low = _mm512_sllv_epi16(one, _mm512_and_si512(two, _mm512_set1_epi16(15)));
      __m512i bits = _mm512_or_si512(low, _mm512_sllv_epi16(one, _mm512_srli_epi16(two, 4)));
      bits = _mm512_or_si512(bits, _mm512_srli_epi64(bits, 16));
      __m128i* const to = reinterpret_cast<__m128i*>(kept + 4 * i);
      if constexpr (N == 4) {
        _mm_storeu_si128(to, _mm512_cvtepi32_epi8(bits));
      } else {
        bits = _mm512_or_si512(bits, _mm512_srli_epi64(bits, 32));
        _mm_storeu_si128(to, _mm512_cvtepi64_epi16(bits));
      }
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < 4 * kParts; ++i) {
      const int part = i % kParts, half_and_row = i / kParts;
      const BFloat16* const w = values + (part * kGroups * 4 + half_and_row) * N;
      BFloat16* const to = row + (half_and_row / 2 * kParts + part) * kTileWeights +
                           half_and_row % 2 * 8 * kTileInputs;
      const __m512i weights = _mm512_castsi256_si512(apart<N>(w));
      _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(kept[i], weights));
    }
  }

  // 16 weights: N at a time, 4 N numbers from one to the next.
  template <int N>
  static SPARSEKERN_INLINE __m256i apart(const BFloat16* w) {
    const auto* const from = reinterpret_cast<const __m128i*>(w);
    if constexpr (N == 8)
      return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(from)),
                                     _mm_loadu_si128(from + 4), 1);
    const __m128i low = _mm_unpacklo_epi64(_mm_loadl_epi64(from), _mm_loadl_epi64(from + 2));
    const __m128i high = _mm_unpacklo_epi64(_mm_loadl_epi64(from + 4), _mm_loadl_epi64(from + 6));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
};

}  // namespace sparsekern::amx_bf16
