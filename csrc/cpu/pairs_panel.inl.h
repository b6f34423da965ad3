// Panels of bfloat16 activations, for kernels that multiply pairs of inputs, and the way of rounded
// sums into y. Included inside an ISA region.
//
// If the pairs are known beforehand, those of neighbours, a row of the panel holds the pairs of
// one: [padded inputs / 2][tokens][2]. Otherwise a row holds one input, and two rows are shuffled
// into pairs when the kernel knows which; a further row holds zeros, for an input without another.

template <class V, bool kNeighbours>
struct PairsPanel {
  using Pairs = typename V::Pairs;

  // Numbers of a row: whole vectors.
  static constexpr int64_t width(int64_t tokens) {
    return kNeighbours ? ceil_div(tokens, V::kLanes) * V::kLine
                       : ceil_div(tokens, V::kLine) * V::kLine;
  }
  static int64_t rows(int64_t padded_inputs) {
    return kNeighbours ? padded_inputs / 2 : padded_inputs + 1;
  }
  // Where an input of a token lies.
  static int64_t place_of(int64_t input, int64_t token, int64_t width) {
    return kNeighbours
               ? input / 2 * width + 2 * token + input % 2
               : input * width + token / V::kLine * V::kLine + V::place_of(token % V::kLine);
  }

  // 32 inputs, as pairs, of 16 tokens from `t` on; tokens that do not exist repeat the last one.
  static SPARSEKERN_INLINE void load(const BFloat16* x, int64_t stride, int64_t t, int64_t tokens,
                                     Pairs pairs[16]) {
    Pairs row[16];
    SPARSEKERN_UNROLL
    for (int i = 0; i < 16; ++i) row[i] = V::load(x + min64(t + i, tokens - 1) * stride);
    V::transpose(row, pairs);
  }

  static SPARSEKERN_INLINE void pack_square(const BFloat16* x, int64_t stride, int64_t t,
                                            int64_t tokens, BFloat16* panel, int64_t width) {
    Pairs low[16];
    load(x, stride, t, tokens, low);
    if constexpr (kNeighbours) {
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) V::store(panel + i * width + 2 * t, low[i]);
    } else {
      Pairs high[16];
      load(x, stride, t + 16, tokens, high);
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) {
        Pairs even, odd;
        V::rows_of_pairs(low[i], high[i], even, odd);
        V::store(panel + 2 * i * width + t, even);
        V::store(panel + (2 * i + 1) * width + t, odd);
      }
    }
  }

  // The rows of `tokens` tokens of x.
  static void pack(const BFloat16* x, int64_t stride, int64_t tokens, int64_t inputs,
                   int64_t padded_inputs, BFloat16* panel) {
    constexpr int64_t kTokens = kNeighbours ? V::kLanes : V::kLine;  // of a square
    const int64_t row = width(tokens);
    int64_t k = 0;
    for (; k + V::kLine <= inputs; k += V::kLine) {
      for (int64_t t = 0; t < tokens; t += kTokens) {
        pack_square(x + k, stride, t, tokens, panel + place_of(k, 0, row), row);
      }
    }
    const int64_t padded_tokens = kNeighbours ? row / 2 : row;
    for (int64_t i = k * padded_tokens; i < rows(padded_inputs) * row; ++i) {
      panel[i] = {0};
    }
    for (; k < inputs; ++k) {
      for (int64_t t = 0; t < padded_tokens; ++t) {
        panel[place_of(k, t, row)] = x[min64(t, tokens - 1) * stride + k];
      }
    }
  }
};

// Writes up to a cache line of outputs, of which `cells` [outputs / 2][MV][16] holds pairs.
template <class V, int MV>
static SPARSEKERN_NOINLINE void write_pairs(const typename V::Pairs* cells, int64_t outputs,
                                            int64_t tokens, BFloat16* y, int64_t y_stride) {
  const int rows = (int)ceil_div(outputs, 2);
  SPARSEKERN_UNROLL
  for (int m = 0; m < MV; ++m) {
    typename V::Pairs row[16], token[16];
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
