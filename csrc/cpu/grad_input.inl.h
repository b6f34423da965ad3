// The gradient of the input: grad * W. Included inside an ISA region, once for each ISA namespace.
//
//   cell[k][m] += splat(weights[k][r]) * grad[r][m]     R outputs x MV vectors of tokens
//
// The gradients of R outputs stay in registers while all inputs of a block row pass by, and each
// input's sum is taken from its cell and put back: R * MV multiply-adds for R splats, MV loads and
// MV stores. Walking by block rows needs no second index, and reads the weights as they lie in
// memory.
//
//   for a group of panels of tokens:
//     for a K-tile, whose cells [inputs][tokens] stay in the cache:
//       for a chunk of bands:  transpose its part of grad, unless that was kept
//                              scatter, band by band, for one panel after the other
//       transpose the cells into the gradient
//
// A sum is taken in the order of the outputs, whatever the panel.

// R outputs of a block row.
template <class V, int R, int MV>
struct ScatterRows {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;

  Reg grad[R][MV];

  SPARSEKERN_INLINE ScatterRows(const float* rows, int64_t stride) {
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) grad[r][m] = V::load(rows + r * stride + m * kLanes);
    }
  }

  SPARSEKERN_INLINE void step(const float* w, float* cell) const {
    Reg sum[MV];
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) sum[m] = V::load(cell + m * kLanes);
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Reg weight = V::splat(w + r);
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) sum[m] = V::fma(weight, grad[r][m], sum[m]);
    }
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) V::store(cell + m * kLanes, sum[m]);
  }

  // Blocks [begin, end), whose outputs from `offset` on these are.
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, int64_t begin, int64_t end,
                                      int64_t offset, const float* grad, int64_t stride,
                                      float* cells) {
    const ScatterRows rows(grad, stride);
    const int64_t height = a.rows, cols = a.cols;
    const float* w = a.values + begin * cols * height + offset;
    const uint16_t* const last = a.columns + end;
    if (cols == 1) {
      for (const uint16_t* column = a.columns + begin; column < last; ++column, w += height) {
        rows.step(w, cells + *column * kWidth);
      }
    } else {
      for (const uint16_t* column = a.columns + begin; column < last; ++column) {
        float* cell = cells + *column * cols * kWidth;
        for (int64_t j = 0; j < cols; ++j, w += height, cell += kWidth) rows.step(w, cell);
      }
    }
  }
};

struct GradTile {
  int64_t begin, end;  // inputs
  bool first;          // of the share
};

// The blocks [begin, end) of a block row in a K-tile, or what an n:m matrix needs none of.
struct GradSpan {
  int32_t begin, end;
};

// `cursor`: where the last tile ended.
static inline GradSpan grad_span(const BlockMatrix& a, int64_t band, const GradTile& tile,
                                 int32_t* cursor) {
  const int32_t row_end = a.offsets[band + 1];
  int32_t begin = tile.first ? a.offsets[band] : *cursor;
  if (tile.first && tile.begin > 0) {
    begin = lower_bound(a.columns, begin, row_end, tile.begin / a.cols);
  }
  *cursor = tile.end >= a.in_features ? row_end
                                      : lower_bound(a.columns, begin, row_end, tile.end / a.cols);
  return {begin, *cursor};
}

static inline GradSpan grad_span(const NMMatrix&, int64_t, const GradTile&, int32_t*) {
  return {0, 0};
}

// kMostRows: outputs taken together, a power of two. kStride: floats between rows of grad.
template <class V, int kMostRows, int MV, int64_t kStride>
struct ScatterBlocks {
  static constexpr int64_t kWidth = MV * V::kLanes;

  template <int R>
  static SPARSEKERN_INLINE void run_rows(const BlockMatrix& a, const GradSpan& span, int64_t offset,
                                         const float* grad, float* cells,
                                         Meanwhile<V, kStride>& next) {
    for (; a.rows - offset >= R; offset += R) {
      ScatterRows<V, R, MV>::run(a, span.begin, span.end, offset, grad + offset * kStride, kStride,
                                 cells);
      next.turn();
    }
    if constexpr (R > 1) {
      if (offset < a.rows) run_rows<R / 2>(a, span, offset, grad, cells, next);
    }
  }

  static void run(const BlockMatrix& a, int64_t, const GradTile&, const GradSpan& span,
                  const float* grad, float* cells, Meanwhile<V, kStride>& next) {
    run_rows<kMostRows>(a, span, 0, grad, cells, next);
  }
};

template <class V, int MV, int64_t kStride>
struct ScatterNM {
  static constexpr int64_t kWidth = MV * V::kLanes;

  // A row's part of the group tiles [begin, end), whose values begin at `w` and positions at `p`.
  // kN, kBits: n and the bits of a position, or 0 for any.
  template <int kN, int kBits>
  static SPARSEKERN_NOINLINE void run_row(const NMMatrix& a, int64_t begin, int64_t end,
                                          const float* w, const uint8_t* p, const float* grad,
                                          float* cells) {
    const int n = kN ? kN : (int)a.n, bits = kN ? kBits : (int)a.position_bits();
    const ScatterRows<V, 1, MV> row(grad, kStride);
    float* cell = cells + begin * a.tile_inputs() * kWidth;
    for (int64_t tile = begin; tile < end; ++tile, w += a.tile_values(), p += 16 * n * bits) {
      for (int half = 0; half < 2; ++half) {
        for (int q = 0; q < 4; ++q, cell += a.m * kWidth) {
          const float* values = w + (q * 2 + half) * 2 * n;
          for (int i = 0; i < n; ++i) {
            const unsigned bit = (q * n + i) * bits;
            const unsigned place = (p[half * n * bits + bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
            row.step(values + i, cell + (size_t)place * kWidth);
          }
        }
      }
    }
  }

  static void run(const NMMatrix& a, int64_t band, const GradTile& tile, const GradSpan&,
                  const float* grad, float* cells, Meanwhile<V, kStride>& next) {
    const int64_t begin = tile.begin / a.tile_inputs(), end = tile.end / a.tile_inputs();
    const int64_t bits = a.position_bits();
    const int64_t first = band * a.group_tiles() + begin;
    const int64_t rows = min64(NMMatrix::kTileRows, a.out_features - band * NMMatrix::kTileRows);
    for (int64_t row = 0; row < rows; ++row, grad += kStride) {
      const int64_t g = row % 8, pair = row / 8;
      const float* w = a.values + first * a.tile_values() + (g * 16 + pair) * a.n;
      const uint8_t* p = a.positions + first * 16 * a.n * bits + g * 2 * a.n * bits;
      p += pair * (a.n * bits / 2);
      if (a.n == 2 && bits == 2) {
        run_row<2, 2>(a, begin, end, w, p, grad, cells);
      } else if (a.n == 1 && bits == 2) {
        run_row<1, 2>(a, begin, end, w, p, grad, cells);
      } else if (a.n == 4 && bits == 4) {
        run_row<4, 4>(a, begin, end, w, p, grad, cells);
      } else {
        run_row<0, 0>(a, begin, end, w, p, grad, cells);
      }
      next.turn();
    }
  }
};

// kTileBytes: of a panel's cells. kGroup: panels that share the weights while these are near.
template <class V, int kMostVectors, int64_t kTileBytes, int kGroup>
struct GradInputFamily {
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kQuantum = kLanes;
  static constexpr int64_t kStride = kGroup * kPanel;

  template <int kValue>
  struct Constant {
    static constexpr int value = kValue;
  };

  // Calls body with the number of vectors that so many tokens fill, as a constant.
  template <int MV = kMostVectors, class Body>
  static SPARSEKERN_INLINE void with_vectors(int64_t tokens, const Body& body) {
    if (ceil_div(tokens, kLanes) == MV) {
      body(Constant<MV>());
    } else if constexpr (MV > 1) {
      with_vectors<MV - 1>(tokens, body);
    }
  }

  // Panels [begin, end) of those that a share's tokens make: they differ by one vector at most.
  struct Panels {
    int64_t token_begin, token_end, begin, end;

    int64_t all() const { return ceil_div(token_end - token_begin, kPanel); }
    int64_t token(int64_t p) const {
      return token_begin + split_evenly<GradInputFamily>(token_end - token_begin, begin + p, all());
    }
  };

  // Transposes a tile's cells into the rows of the gradient. These are asked for a line ahead, for
  // they have not been touched yet.
  template <int64_t kWidth>
  static void write(const float* cells, int64_t inputs, int64_t tokens, float* out,
                    int64_t stride) {
    for (int64_t k = 0; k < inputs; k += kLine) {
      if (k + kLine < inputs) {
        for (int64_t t = 0; t < tokens; ++t) __builtin_prefetch(out + t * stride + k + kLine, 1, 3);
      }
      write_cells<V, kWidth>(cells + k * kWidth, min64(kLine, inputs - k), true, nullptr, tokens,
                             out + k, stride);
    }
  }

  template <class Of, class Matrix>
  static void run_group(const Matrix& a, const GradCall& call, const Panels& group,
                        int32_t* cursors, float* scratch) {
    const int64_t quantum = a.input_quantum(), height = a.band_outputs();
    const int64_t quanta = ceil_div(a.in_features, quantum);
    const int64_t tiles =
        ceil_div(quanta, max64(1, kTileBytes / (quantum * kPanel * (int64_t)sizeof(float))));
    const int64_t tile_inputs = ceil_div(quanta, tiles) * quantum;
    const int64_t chunk_bands = max64(1, kGradOutputs / height);
    const int64_t panels = group.end - group.begin;
    float* const rows = scratch;
    float* const cells = rows + (tiles == 1 ? 2 * chunk_bands : a.bands()) * height * kStride;
    // Where no further tile will ask for them, two chunks take turns.
    const auto rows_of = [&](int64_t chunk) {
      return rows + (tiles == 1 ? chunk / chunk_bands % 2 * chunk_bands : chunk) * height * kStride;
    };
    const auto transposing = [&](int64_t chunk) {
      const int64_t output = chunk * height;
      const int64_t end = min64(chunk + chunk_bands, a.bands()) * height;
      return Transposing<V, kStride>(call.grad + group.token(0) * call.grad_stride + output,
                                     call.grad_stride, group.token(panels) - group.token(0),
                                     min64(end, a.out_features) - output, end - output,
                                     rows_of(chunk));
    };
    transposing(0).finish();

    for (int64_t input = 0; input < quanta * quantum; input += tile_inputs) {
      const GradTile tile{input, min64(input + tile_inputs, quanta * quantum), input == 0};
      for (int64_t i = 0; i < panels * tile_inputs * kPanel; ++i) cells[i] = 0.0f;
      for (int64_t chunk = 0; chunk < a.bands(); chunk += chunk_bands) {
        const int64_t chunk_end = min64(chunk + chunk_bands, a.bands());
        Meanwhile<V, kStride> next;
        if (tile.first && chunk_end < a.bands()) {
          next = {transposing(chunk_end), panels * Of::turns(a, chunk_end - chunk)};
        }
        for (int64_t band = chunk; band < chunk_end; ++band) {
          const GradSpan span = grad_span(a, band, tile, cursors + band);
          const float* const grad = rows_of(chunk) + (band - chunk) * height * kStride;
          for (int64_t p = 0; p < panels; ++p) {
            with_vectors(group.token(p + 1) - group.token(p), [&](auto vectors) {
              using Scatter = typename Of::template With<vectors.value>;
              Scatter::run(a, band, tile, span, grad + (group.token(p) - group.token(0)),
                           cells + (p * tile_inputs * kPanel - input * Scatter::kWidth), next);
            });
          }
        }
        next.finish();
      }
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t token = group.token(p), tokens = group.token(p + 1) - token;
        with_vectors(tokens, [&](auto vectors) {
          write<vectors.value * kLanes>(cells + p * tile_inputs * kPanel,
                                        min64(tile.end, a.in_features) - input, tokens,
                                        call.out + token * a.in_features + input, a.in_features);
        });
      }
    }
  }

  template <class Of, class Matrix>
  static void run_groups(const Matrix& a, const GradCall& call, const GradShare& share) {
    Panels group{share.token_begin, share.token_end, 0, 0};
    const int64_t panels = group.all();
    const int64_t groups = ceil_div(panels, kGroup);
    for (int64_t g = 0; g < groups; ++g) {
      group.begin = panels * g / groups;
      group.end = panels * (g + 1) / groups;
      run_group<Of>(a, call, group, share.cursors, share.scratch);
    }
  }
};

template <class V, int kMostRows, int kMostVectors, int64_t kTileBytes, int kGroup>
struct GradInputBlocks : GradInputFamily<V, kMostVectors, kTileBytes, kGroup> {
  using Matrix = BlockMatrix;
  template <int MV>
  using With = ScatterBlocks<V, kMostRows, MV, GradInputBlocks::kStride>;

  static int64_t turns(const BlockMatrix& a, int64_t bands) {
    return bands * ceil_div(a.rows, kMostRows);
  }
  static void run_share(const BlockMatrix& a, const GradCall& call, const GradShare& share) {
    GradInputBlocks::template run_groups<GradInputBlocks>(a, call, share);
  }
};

template <class V, int kMostVectors, int64_t kTileBytes, int kGroup>
struct GradInputNM : GradInputFamily<V, kMostVectors, kTileBytes, kGroup> {
  using Matrix = NMMatrix;
  template <int MV>
  using With = ScatterNM<V, MV, GradInputNM::kStride>;

  static int64_t turns(const NMMatrix&, int64_t bands) { return bands * NMMatrix::kTileRows; }
  static void run_share(const NMMatrix& a, const GradCall& call, const GradShare& share) {
    GradInputNM::template run_groups<GradInputNM>(a, call, share);
  }
};
