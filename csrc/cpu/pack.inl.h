// Packing of activations: row-major tokens into panels [in_features][width], tokens side by side.
// A kernel then reads one input of all its tokens from one or two cache lines, whatever the stride
// of the caller's rows; at power-of-two strides those rows would share a few cache sets.
// Included inside an ISA region, once for each ISA namespace.

// Packs `tokens` <= V::kLanes rows of x. Every store writes a whole vector; what it spills beyond
// `width` is overwritten by the next input's store, and after the last one lands in slack.
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
    for (int t = 0; t < tokens; ++t) panel[k * width + t] = x[t * stride + k];
  }
}

// Inputs between the matrix and a whole number of blocks: their weights are zero, so must they be.
inline void pad_panel(float* panel, int64_t inputs, int64_t padded_inputs, int64_t width) {
  for (int64_t i = inputs * width; i < padded_inputs * width; ++i) panel[i] = 0.0f;
}
