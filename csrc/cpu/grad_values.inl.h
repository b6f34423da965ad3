// The gradient of the stored values: grad^T * x at the kept places only. Included inside an ISA
// region, once for each ISA namespace.
//
//   acc[r][c] += grad[r][t] * x[c][t]        R outputs x C inputs, a vector of tokens each
//
// For each vector of tokens: R + C loads for R * C multiply-adds; at the end the lanes are summed
// up. Both operands are transposed first, a chunk of kGradTokens at a time. The C inputs are
// those of whatever blocks follow one another in a block row, so single columns fill a tile like
// wide blocks do.
//
//   for a K-tile, whose transpose of x stays in L2:
//     for a chunk of bands:  transpose its part of grad, unless that was kept
//                            Products::run, band by band
//
// Each value is summed up by one thread, in an order that depends on the tokens alone.

template <class V, int R, int C>
struct Dots {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;

  // sums [C][R], of `tokens` in whole vectors. `next`: two rows of x that will be asked for later;
  // they wait in L2.
  static SPARSEKERN_NOINLINE void run(const float* grad, const float* const* x,
                                      const float* const next[2], int64_t tokens, float* sums) {
    const float* input[C];
    SPARSEKERN_UNROLL
    for (int c = 0; c < C; ++c) input[c] = x[c];
    Reg acc[C * R];
    SPARSEKERN_UNROLL
    for (int i = 0; i < C * R; ++i) acc[i] = V::zero();
    const float *const next0 = next[0], *const next1 = next[1];
    for (int64_t t = 0; t < tokens; t += kLanes) {
      prefetch(next0 + t);
      prefetch(next1 + t);
      Reg output[R];
      SPARSEKERN_UNROLL
      for (int r = 0; r < R; ++r) output[r] = V::load(grad + r * kGradTokens + t);
      SPARSEKERN_UNROLL
      for (int c = 0; c < C; ++c) {
        const Reg token = V::load(input[c] + t);
        SPARSEKERN_UNROLL
        for (int r = 0; r < R; ++r) acc[c * R + r] = V::fma(output[r], token, acc[c * R + r]);
      }
    }
    SPARSEKERN_UNROLL
    for (int i = 0; i < C * R; i += kLanes) {
      Reg group[kLanes];
      SPARSEKERN_UNROLL
      for (int j = 0; j < kLanes; ++j) group[j] = i + j < C * R ? acc[i + j] : V::zero();
      V::store(sums + i, V::sum_lanes(group));
    }
  }
};

// `count` <= C of them.
template <class V, int R, int C>
static SPARSEKERN_INLINE void dots(int64_t count, const float* grad, const float* const* x,
                                   const float* const next[2], int64_t tokens, float* sums) {
  if (count == C) {
    Dots<V, R, C>::run(grad, x, next, tokens, sums);
  } else if constexpr (C > 1) {
    dots<V, R, C - 1>(count, grad, x, next, tokens, sums);
  }
}

// What the bands of a chunk share.
template <class V>
struct Products {
  const float* panel;  // of input 0: x, transposed
  int64_t tokens;      // in whole vectors
  bool first;
  float* out;
  Meanwhile<V, kGradTokens> next;  // the rows of grad for the chunk to come
};

template <class V, int kMostRows, int C>
struct BlockProducts {
  static constexpr int64_t kStrip = 16;  // outputs whose gradients stay in L1
  static constexpr int kSums = kMostRows * C + V::kLanes;

  static int64_t turns(const BlockMatrix& a, int64_t begin, int64_t end) {
    return (a.offsets[end] - a.offsets[begin]) * a.cols / C * ceil_div(a.rows, kStrip);
  }

  // Outputs [offset, end) of a block row with `count` inputs, to which their values lie at `out`.
  template <int R>
  static SPARSEKERN_INLINE void run_rows(const Products<V>& call, int64_t rows, int64_t offset,
                                         int64_t end, const float* grad, const float* const* x,
                                         const float* const* next, int64_t count, float* out) {
    alignas(64) float sums[kSums];
    for (; end - offset >= R; offset += R) {
      dots<V, R, C>(count, grad + offset * kGradTokens, x, next, call.tokens, sums);
      next = next + 3 < x + 2 * C ? next + 2 : next;
      float* place = out + offset;
      const float* sum = sums;
      if (call.first) {
        for (int64_t c = 0; c < count; ++c, place += rows, sum += R) {
          SPARSEKERN_UNROLL
          for (int r = 0; r < R; ++r) place[r] = sum[r];
        }
      } else {
        for (int64_t c = 0; c < count; ++c, place += rows, sum += R) {
          SPARSEKERN_UNROLL
          for (int r = 0; r < R; ++r) place[r] += sum[r];
        }
      }
    }
    if constexpr (R > 1) {
      if (offset < end) run_rows<R / 2>(call, rows, offset, end, grad, x, next, count, out);
    }
  }

  static void run(const BlockMatrix& a, Products<V>& call, int64_t band, const GradTile& tile,
                  int32_t* cursor, const float* grad) {
    const auto [begin, end] = grad_span(a, band, tile, cursor);
    const int64_t rows = a.rows, cols = a.cols, inputs = (end - begin) * cols;
    float* const out = call.out + begin * cols * rows;
    for (int64_t strip = 0; strip < rows; strip += kStrip) {
      const int64_t strip_end = min64(rows, strip + kStrip);
      const uint16_t* column = a.columns + begin;
      int64_t j = 0;
      const auto next_row = [&] {
        const float* row = call.panel + (*column * cols + j) * kGradTokens;
        if (++j == cols) {
          j = 0;
          ++column;
        }
        return row;
      };
      // Rows of x for this tile, and for the next one.
      const float* x[2 * C];
      for (int64_t c = 0; c < C; ++c) x[C + c] = c < inputs ? next_row() : call.panel;
      for (int64_t i = 0; i < inputs; i += C) {
        const int64_t count = min64(C, inputs - i), later = min64(C, inputs - i - count);
        for (int64_t c = 0; c < C; ++c) x[c] = x[C + c];
        for (int64_t c = 0; c < later; ++c) x[C + c] = next_row();
        run_rows<kMostRows>(call, rows, strip, strip_end, grad, x, x + C, count, out + i * rows);
        call.next.turn();
      }
    }
    clear_padding(a, band, begin, end, call.out);
  }

  // Exactly zero, where a sum with infinite gradients or inputs is not.
  static void clear_padding(const BlockMatrix& a, int64_t band, int32_t begin, int32_t end,
                            float* out) {
    const int64_t rows = min64(a.rows, a.out_features - band * a.rows);
    if (rows < a.rows) {
      for (int64_t i = begin * a.cols; i < end * a.cols; ++i) {
        for (int64_t r = rows; r < a.rows; ++r) out[i * a.rows + r] = 0.0f;
      }
    }
    const int64_t tail = a.in_features % a.cols;
    if (tail != 0 && begin < end && a.columns[end - 1] == a.in_features / a.cols) {
      float* const block = out + (end - 1) * a.cols * a.rows;
      for (int64_t i = tail * a.rows; i < a.cols * a.rows; ++i) block[i] = 0.0f;
    }
  }
};

template <class V, int C>
struct NMProducts {
  static int64_t turns(const NMMatrix& a, int64_t begin, int64_t end) {
    return (end - begin) * a.group_tiles() * a.tile_values() / C;
  }

  // Values of one row that are summed up together.
  class Batch {
   public:
    Batch(Products<V>& call, const float* grad) : call_(call), grad_(grad) {}

    SPARSEKERN_INLINE void add(const float* x, float* place) {
      x_[count_] = x;
      place_[count_] = place;
      if (++count_ == C) flush();
    }

    void flush() {
      alignas(64) float sums[C + V::kLanes] = {};
      const float* const none[2] = {grad_, grad_};
      dots<V, 1, C>(count_, grad_, x_, none, call_.tokens, sums);
      for (int64_t c = 0; c < count_; ++c) {
        *place_[c] = call_.first ? sums[c] : *place_[c] + sums[c];
      }
      count_ = 0;
      call_.next.turn();
    }

   private:
    Products<V>& call_;
    const float* grad_;
    int64_t count_ = 0;
    const float* x_[C];
    float* place_[C];
  };

  // A row's part of group tile `tile`: its values begin at `w`, its positions at `p`.
  static void add_tile(const NMMatrix& a, const Products<V>& call, int64_t tile, int64_t w,
                       const uint8_t* p, Batch& batch) {
    const int64_t n = a.n, bits = a.position_bits();
    for (int64_t group = 0; group < NMMatrix::kTileGroups; ++group) {
      const int64_t q = group % 4, half = group / 4;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t bit = (q * n + i) * bits;
        const int64_t place = (p[half * n * bits + bit / 8] >> (bit % 8)) & ((1 << bits) - 1);
        const int64_t input = tile * a.tile_inputs() + group * a.m + place;
        float* const to = call.out + w + (q * 2 + half) * 2 * n + i;
        if (input < a.in_features) {
          batch.add(call.panel + input * kGradTokens, to);
        } else {
          *to = 0.0f;
        }
      }
    }
  }

  static void run(const NMMatrix& a, Products<V>& call, int64_t band, const GradTile& tile,
                  int32_t*, const float* grad) {
    const int64_t begin = tile.begin / a.tile_inputs(), end = tile.end / a.tile_inputs();
    const int64_t n = a.n, bits = a.position_bits();
    for (int64_t row = 0; row < NMMatrix::kTileRows; ++row) {
      const int64_t g = row % 8, pair = row / 8;
      const bool padding = band * NMMatrix::kTileRows + row >= a.out_features;
      Batch batch(call, grad + row * kGradTokens);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = band * a.group_tiles() + t;
        const int64_t w = at * a.tile_values() + (g * 16 + pair) * n;
        if (padding) {
          for (int64_t i = 0; i < 8 * n; ++i) call.out[w + i / n * 2 * n + i % n] = 0.0f;
        } else {
          const uint8_t* p = a.positions + at * 16 * n * bits + g * 2 * n * bits;
          add_tile(a, call, t, w, p + pair * (n * bits / 2), batch);
        }
      }
      batch.flush();
    }
  }
};

template <class V, class Of, class MatrixType>
struct GradValuesFamily {
  using Matrix = MatrixType;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kStride = kGradTokens;

  static void run_share(const Matrix& a, const GradCall& call, const GradShare& share) {
    const int64_t quantum = a.input_quantum(), height = a.band_outputs();
    const int64_t tokens = share.token_end - share.token_begin;
    const int64_t quanta = (share.input_end - share.input_begin) / quantum;
    const int64_t tiles = ceil_div(quanta, max64(1, kGradTileInputs / quantum));
    const int64_t tile_inputs = ceil_div(quanta, tiles) * quantum;
    const int64_t chunk_bands = max64(1, kGradOutputs / height);
    const int64_t batch_bands = max64(1, kMostGradOutputs / (chunk_bands * height)) * chunk_bands;
    float* const panel = share.scratch;
    float* const rows = panel + tile_inputs * kGradTokens;
    const float* const x = call.x + share.token_begin * call.x_stride;
    const float* const grad = call.grad + share.token_begin * call.grad_stride;

    for (int64_t batch = share.band_begin; batch < share.band_end; batch += batch_bands) {
      const int64_t batch_end = min64(batch + batch_bands, share.band_end);
      // Where no further tile will ask for them, two chunks take turns.
      const auto place = [&](int64_t chunk) {
        const int64_t number = (chunk - batch) / chunk_bands;
        return rows + (tiles == 1 ? number % 2 : number) * chunk_bands * height * kGradTokens;
      };
      const auto transposing = [&](int64_t chunk) {
        const int64_t output = chunk * height;
        const int64_t end = min64(chunk + chunk_bands, batch_end) * height;
        return Transposing<V, kGradTokens>(grad + output, call.grad_stride, tokens,
                                           min64(end, a.out_features) - output, end - output,
                                           place(chunk));
      };
      transposing(batch).finish();
      for (int64_t input = share.input_begin; input < share.input_end; input += tile_inputs) {
        const GradTile tile{input, min64(input + tile_inputs, share.input_end),
                            input == share.input_begin};
        Transposing<V, kGradTokens>(x + input, call.x_stride, tokens,
                                    min64(tile.end, a.in_features) - input, tile.end - input, panel)
            .finish();
        for (int64_t chunk = batch; chunk < batch_end; chunk += chunk_bands) {
          const int64_t chunk_end = min64(chunk + chunk_bands, batch_end);
          Products<V> products{panel - input * kGradTokens,
                               ceil_div(tokens, kLanes) * kLanes,
                               share.first,
                               call.out,
                               {}};
          if (tile.first && chunk_end < batch_end) {
            products.next = {transposing(chunk_end), Of::turns(a, chunk, chunk_end) / tiles};
          }
          for (int64_t band = chunk; band < chunk_end; ++band) {
            Of::run(a, products, band, tile, share.cursors + band,
                    place(chunk) + (band - chunk) * height * kGradTokens);
          }
          products.next.finish();
        }
      }
    }
  }
};

template <class V, int kMostRows, int C>
using GradValuesBlocks = GradValuesFamily<V, BlockProducts<V, kMostRows, C>, BlockMatrix>;
template <class V, int C>
using GradValuesNM = GradValuesFamily<V, NMProducts<V, C>, NMMatrix>;
