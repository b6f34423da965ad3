// Kernels of bfloat16 that hold vectors of tokens: dot products of pairs, R outputs at a time.
// Included inside an ISA region.
//
//   acc[r][m] += splat(weights of r for k and l) . (x[k][m], x[l][m])
//
// Two inputs that follow one another in a block row make a pair, whichever they are, so blocks of
// any width are served alike; a last one without another is paired with a row of zeros. For each
// pair: 2 loads and 2 shuffles for two vectors of tokens, R splats, R * MV dot products.
//
//   for a batch of tokens:       pack them into panels of rows of 32 tokens an input
//     for a chunk of outputs:    pair its weights, which then stay in L2
//       for a panel:             strip by strip; a cache line of outputs is then written as it is
//
// Sums stay in registers from the first input to the last, and are rounded once.

// What a strip of R outputs is multiplied with.
struct PairedStrip {
  const uint32_t* weights;  // [pairs][R]
  const uint32_t* inputs;   // [pairs][2]
  int64_t pairs;
};

// One after the other of consecutive strips, each in its block row.
struct StripPlace {
  int64_t row, offset;

  StripPlace(const BlockMatrixOf<BFloat16>& a, int64_t output)
      : row(output / a.rows), offset(output % a.rows) {}
  void advance(const BlockMatrixOf<BFloat16>& a, int64_t outputs) {
    offset += outputs;
    if (offset == a.rows) {
      offset = 0;
      ++row;
    }
  }
};

template <class V, int R>
class PairedChunk {
 public:
  using Matrix = BlockMatrixOf<BFloat16>;

  PairedChunk(float* scratch, int64_t padded_inputs)
      : room_(pairs_in_chunk(padded_inputs)),
        weights_(reinterpret_cast<uint32_t*>(scratch)),
        inputs_(weights_ + room_),
        strips_(reinterpret_cast<PairedStrip*>(inputs_ + inputs_in_chunk(padded_inputs))) {
    static_assert(sizeof(PairedStrip) <= 8 * sizeof(float), "scratch for strips");
  }

  const PairedStrip* strips() const { return strips_; }
  void* end() const { return reinterpret_cast<float*>(strips_) + 8 * kMostStrips; }

  // Pairs what outputs from `begin` on have, a cache line of them at least; returns the first one
  // beyond.
  int64_t fill(const Matrix& a, int64_t begin, int64_t outputs_end) {
    uint32_t *weights = weights_, *inputs = inputs_;
    PairedStrip* strip = strips_;
    StripPlace place(a, begin);
    int64_t paired_row = -1;
    while (begin < outputs_end) {
      const int64_t line_end = min64(outputs_end, (begin / V::kLine + 1) * V::kLine);
      if (strip != strips_ && !fits(a, place, line_end - begin, weights, strip)) break;
      for (; begin < line_end; begin += R, place.advance(a, R), ++strip) {
        const int64_t count = (a.offsets[place.row + 1] - a.offsets[place.row]) * a.cols;
        const int64_t pairs = ceil_div(count, 2);
        if (place.row != paired_row) {
          if (strip != strips_) inputs += 2 * strip[-1].pairs;
          paired_row = place.row;
          list_inputs(a, place.row, inputs);
        }
        *strip = {weights, inputs, pairs};
        pair_weights(a.values + a.stored_before(place.row) + place.offset, a.rows, count, weights);
        weights += R * pairs;
      }
      begin = line_end;
    }
    return begin;
  }

 private:
  bool fits(const Matrix& a, StripPlace place, int64_t outputs, const uint32_t* weights,
            const PairedStrip* strip) const {
    int64_t more = 0;
    for (int64_t n = 0; n < outputs; n += R, place.advance(a, R)) {
      more += R * ceil_div((a.offsets[place.row + 1] - a.offsets[place.row]) * a.cols, 2);
    }
    return weights + more <= weights_ + room_ && strip + V::kLine / R <= strips_ + kMostStrips;
  }

  static void list_inputs(const Matrix& a, int64_t row, uint32_t* inputs) {
    const int64_t cols = a.cols;
    for (int64_t block = a.offsets[row]; block < a.offsets[row + 1]; ++block) {
      const uint32_t first = (uint32_t)(a.columns[block] * cols);
      for (int64_t j = 0; j < cols; ++j) *inputs++ = first + (uint32_t)j;
    }
    *inputs = (uint32_t)a.padded_in_features();  // the row of zeros, if it has to make a pair
  }

  static void pair_weights(const BFloat16* w, int64_t rows, int64_t count, uint32_t* weights) {
    const BFloat16 zeros[R] = {};
    for (; count >= 2; count -= 2, w += 2 * rows, weights += R) {
      __builtin_prefetch(w + 16 * rows);
      V::template pair_weights<R>(w, w + rows, weights);
    }
    if (count == 1) V::template pair_weights<R>(w, zeros, weights);
  }

  int64_t room_;
  uint32_t *weights_, *inputs_;
  PairedStrip* strips_;
};

// R outputs, MV vectors of tokens. A row of the panel is whole cache lines.
template <class V, int R, int MV>
struct PairsStrip {
  using Reg = typename V::Reg;
  using Pairs = typename V::Pairs;
  using Wide = typename V::Wide;
  static constexpr int64_t kWidth = (MV + 1) / 2 * V::kLine;

  static SPARSEKERN_INLINE void step(Reg acc[R][MV], const uint32_t* w, const BFloat16* x,
                                     const BFloat16* other) {
    Pairs token[MV];
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; m += 2) {
      const Pairs a = V::load(x + m / 2 * V::kLine), b = V::load(other + m / 2 * V::kLine);
      token[m] = V::pair_low(a, b);
      if (m + 1 < MV) token[m + 1] = V::pair_high(a, b);
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Pairs weight = V::splat(w + r);
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = V::dot(weight, token[m], acc[r][m]);
    }
  }

  // The strip's outputs, rounded, as pairs of them: cells [R / 2][MV][16].
  static SPARSEKERN_NOINLINE void add(const PairedStrip& strip, const float* bias,
                                      Activation activation, const BFloat16* panel,
                                      LinesAhead<BFloat16>& lines, Pairs* cells) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = Wide::splat(bias + r);
    }
    const uint32_t* w = strip.weights;
    const uint32_t* input = strip.inputs;
    for (const uint32_t* const end = w + strip.pairs * R; w < end; w += R, input += 2) {
      if (lines.left() > 0) lines.fetch();
      step(acc, w, panel + input[0] * kWidth, panel + input[1] * kWidth);
    }
    if (activation != Activation::kNone) {
      SPARSEKERN_UNROLL
      for (int r = 0; r < R; ++r) {
        for (int m = 0; m < MV; ++m) acc[r][m] = activate<Wide>(acc[r][m], activation);
      }
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; r += 2) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) cells[r / 2 * MV + m] = V::round_pairs(acc[r][m], acc[r + 1][m]);
    }
  }

  // Up to a cache line of outputs.
  static SPARSEKERN_NOINLINE void write(const Pairs* cells, int64_t outputs, int64_t tokens,
                                        BFloat16* y, int64_t y_stride) {
    const int rows = (int)ceil_div(outputs, 2);
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) {
      Pairs row[16], token[16];
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) row[i] = cells[(i < rows ? i : 0) * MV + m];
      V::transpose(row, token);
      SPARSEKERN_UNROLL
      for (int t = 0; t < 16; ++t, y += y_stride) {
        if (m * 16 + t >= tokens) break;
        V::store_first(y, token[t], (int)outputs);
      }
    }
  }

  // Outputs [begin, end) for the tokens of one panel; `y` is of the first output.
  static void run(const PairedStrip* strip, const CallOf<BFloat16>& call, int64_t begin,
                  int64_t end, int64_t out_features, const BFloat16* panel, int64_t tokens,
                  BFloat16* y) {
    alignas(64) Pairs cells[V::kLine / 2 * MV];
    int64_t line_end;
    for (int64_t line = begin; line < end; y += line_end - line, line = line_end) {
      line_end = min64(end, (line / V::kLine + 1) * V::kLine);
      LinesAhead<BFloat16> lines(y, call.y_stride, tokens);
      for (int64_t n = line; n < line_end; n += R, ++strip) {
        float bias[R] = {};
        for (int64_t r = 0; call.bias != nullptr && r < min64(R, out_features - n); ++r) {
          bias[r] = V::widened(call.bias[n + r]);
        }
        add(*strip, bias, call.activation, panel, lines, cells + (n - line) / 2 * MV);
      }
      write(cells, min64(line_end, out_features) - line, tokens, y, call.y_stride);
    }
  }
};

template <class V, int R, int kMostVectors>
struct PairsFamily {
  using Matrix = BlockMatrixOf<BFloat16>;
  using Call = CallOf<BFloat16>;
  using Pairs = typename V::Pairs;
  static constexpr int64_t kPanel = kMostVectors * V::kLanes;
  static constexpr int64_t kQuantum = V::kLanes;

  static int64_t width(int64_t tokens) { return ceil_div(tokens, V::kLine) * V::kLine; }

  // Packs up to 32 rows of x into a panel [inputs][width]; rows that do not exist repeat the last.
  static void pack_line(const BFloat16* x, int64_t stride, int64_t tokens, int64_t inputs,
                        BFloat16* panel, int64_t width) {
    int64_t k = 0;
    for (; k + V::kLine <= inputs; k += V::kLine) {
      Pairs half[2][16];
      SPARSEKERN_UNROLL
      for (int h = 0; h < 2; ++h) {
        Pairs row[16];
        SPARSEKERN_UNROLL
        for (int t = 0; t < 16; ++t) {
          row[t] = V::load(x + min64(h * 16 + t, tokens - 1) * stride + k);
        }
        V::transpose(row, half[h]);
      }
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) {
        Pairs even, odd;
        V::rows_of_pairs(half[0][i], half[1][i], even, odd);
        V::store(panel + (k + 2 * i) * width, even);
        V::store(panel + (k + 2 * i + 1) * width, odd);
      }
    }
    for (; k < inputs; ++k) {
      for (int t = 0; t < V::kLine; ++t) {
        panel[k * width + V::place_of(t)] = x[min64(t, tokens - 1) * stride + k];
      }
    }
  }

  static void pack(const Matrix& a, const BFloat16* x, int64_t stride, int64_t tokens,
                   BFloat16* panel) {
    const int64_t row = width(tokens), inputs = a.in_features;
    for (int64_t t = 0; t < tokens; t += V::kLine) {
      pack_line(x + t * stride, stride, min64(V::kLine, tokens - t), inputs, panel + t, row);
    }
    for (int64_t i = inputs * row; i < (a.padded_in_features() + 1) * row; ++i) panel[i] = {0};
  }

  template <int MV>
  static void run_exact(const PairedStrip* strips, const Call& call, int64_t begin, int64_t end,
                        int64_t out_features, const BFloat16* panel, int64_t tokens, BFloat16* y) {
    if (ceil_div(tokens, V::kLanes) == MV) {
      PairsStrip<V, R, MV>::run(strips, call, begin, end, out_features, panel, tokens, y);
    } else if constexpr (MV > 1) {
      run_exact<MV - 1>(strips, call, begin, end, out_features, panel, tokens, y);
    }
  }

  static void run_share(const Matrix& a, const Call& call, const Share& share) {
    const int64_t padded = a.padded_in_features();
    PairedChunk<V, R> chunk(share.scratch, padded);
    BFloat16* const packed = reinterpret_cast<BFloat16*>(chunk.end());
    const int64_t total = share.token_end - share.token_begin;
    const int64_t batches = ceil_div(total, kPairsTokens);
    // Whole strips: what the last block row has beyond the outputs is multiplied and not written.
    const int64_t outputs_end = share.row_end * a.rows;
    for (int64_t batch = 0; batch < batches; ++batch) {
      const int64_t first = share.token_begin + split_evenly<PairsFamily>(total, batch, batches);
      const int64_t tokens =
          share.token_begin + split_evenly<PairsFamily>(total, batch + 1, batches) - first;
      const int64_t panels = ceil_div(tokens, kPanel);
      int64_t end;
      for (int64_t begin = share.row_begin * a.rows; begin < outputs_end; begin = end) {
        end = chunk.fill(a, begin, outputs_end);
        BFloat16* panel = packed;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t t = split_evenly<PairsFamily>(tokens, p, panels);
          const int64_t count = split_evenly<PairsFamily>(tokens, p + 1, panels) - t;
          if (begin == share.row_begin * a.rows) {
            pack(a, call.x + (first + t) * call.x_stride, call.x_stride, count, panel);
          }
          run_exact<kMostVectors>(chunk.strips(), call, begin, end, a.out_features, panel, count,
                                  call.y + (first + t) * call.y_stride + begin);
          panel += (padded + 1) * width(count);
        }
      }
    }
  }
};
