// Packing of activations: row-major tokens into panels [in_features][width], tokens side by side.
// Included inside an ISA region, once for each ISA namespace.

// Packs `tokens` <= V::kLanes rows of x. Where there is room for more lanes than tokens they repeat
// the last one: their sums are computed and never stored. Where there is not (width < V::kLanes),
// each store spills into the next input, which is written after it, and the last into the slack.
template <class V>
SPARSEKERN_INLINE void pack_strip(const float* x, int64_t stride, int tokens, int64_t inputs,
                                  float* panel, int64_t width) {
  constexpr int L = V::kLanes;
  int64_t k = 0;
  for (; k + L <= inputs; k += L) {
    typename V::Reg column[L];
    V::load_transposed(x + k, stride, tokens, column);
    SPARSEKERN_UNROLL
    for (int j = 0; j < L; ++j) V::store(panel + (k + j) * width, column[j]);
  }
  for (; k < inputs; ++k) {
    for (int t = 0; t < L; ++t)
      panel[k * width + t] = x[(t < tokens ? t : tokens - 1) * stride + k];
  }
}
