// A panel of activations with a vector of tokens for each input, and the way of its sums back into
// row-major y. Included inside an ISA region, once for each ISA namespace.

// Packs `tokens` <= V::kLanes rows of x into a panel [inputs][width]. Where there is room for more
// lanes than tokens they repeat the last one: their sums are computed and never stored.
template <class V>
SPARSEKERN_INLINE void pack_strip(const float* x, int64_t stride, int tokens, int64_t inputs,
                                  float* panel, int64_t width) {
  constexpr int L = V::kLanes;
  int64_t k = 0;
  for (; k + L <= inputs; k += L) {
    // The panel lies in L2, and no hardware foresees stores this far apart.
    SPARSEKERN_UNROLL
    for (int j = 0; j < L; ++j) __builtin_prefetch(panel + (k + L + j) * width, 1, 3);
    typename V::Reg column[L];
    V::load_transposed(x + k, stride, tokens, column);
    SPARSEKERN_UNROLL
    for (int j = 0; j < L; ++j) V::store(panel + (k + j) * width, column[j]);
  }
  for (; k < inputs; ++k) {
    for (int t = 0; t < L; ++t) {
      panel[k * width + t] = x[(t < tokens ? t : tokens - 1) * stride + k];
    }
  }
}

// Packs rows of x into a panel [padded inputs][width], the width being that of whole vectors.
template <class V>
static void pack_panel(const float* x, int64_t stride, int64_t tokens, int64_t inputs,
                       int64_t padded, float* panel) {
  constexpr int L = V::kLanes;
  const int64_t width = ceil_div(tokens, L) * L;
  for (int64_t t = 0; t < tokens; t += L) {
    pack_strip<V>(x + t * stride, stride, (int)min64(L, tokens - t), inputs, panel + t, width);
  }
  for (int64_t i = inputs * width; i < padded * width; ++i) panel[i] = 0.0f;
}

// Transposes a square of cells [outputs][width] and adds it to kLanes rows of y, or to the bias
// that y begins with.
template <class V, int64_t kWidth>
SPARSEKERN_INLINE void write_square(const float* cells, int outputs, bool first, const float* bias,
                                    int64_t tokens, float* y, int64_t y_stride) {
  constexpr int L = V::kLanes;
  typename V::Reg row[L];
  V::load_transposed(cells, kWidth, outputs, row);
  const typename V::Reg shift = bias == nullptr ? V::zero() : V::load_first(bias, outputs);
  if (outputs == L && tokens >= L) {
    SPARSEKERN_UNROLL
    for (int t = 0; t < L; ++t, y += y_stride) {
      V::store(y, V::add(row[t], first ? shift : V::load(y)));
    }
  } else {
    SPARSEKERN_UNROLL
    for (int t = 0; t < L; ++t, y += y_stride) {
      if (t >= tokens) break;
      V::store_first(y, V::add(row[t], first ? shift : V::load_first(y, outputs)), outputs);
    }
  }
}

// Goes through y by whole cache lines: at power-of-two strides its rows share cache sets, and a
// line left half written would be evicted before the other half comes.
template <class V, int64_t kWidth>
static SPARSEKERN_NOINLINE void write_cells(const float* cells, int64_t outputs, bool first,
                                            const float* bias, int64_t tokens, float* y,
                                            int64_t y_stride) {
  constexpr int L = V::kLanes;
  for (int64_t t = 0; t < tokens; t += L) {
    for (int64_t n = 0; n < outputs; n += L) {
      write_square<V, kWidth>(cells + n * kWidth + t, (int)min64(L, outputs - n), first,
                              bias == nullptr ? nullptr : bias + n, tokens - t,
                              y + t * y_stride + n, y_stride);
    }
  }
}
