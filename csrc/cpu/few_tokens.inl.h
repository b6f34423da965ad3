// What kernels of a few tokens share: how they find their inputs, and the way of their sums into y.
// Included inside an ISA region, once for each ISA namespace.

// T tokens of each input side by side, as float32; lanes beyond `tokens` repeat the last one.
template <int T, class Value>
static void pack_side_by_side(const Value* x, int64_t stride, int64_t tokens, int64_t inputs,
                              int64_t padded, float* panel) {
  for (int64_t t = 0; t < T; ++t) {
    const Value* row = x + min64(t, tokens - 1) * stride;
    for (int64_t k = 0; k < inputs; ++k) panel[k * T + t] = widened(row[k]);
  }
  for (int64_t i = inputs * T; i < padded * T; ++i) panel[i] = 0.0f;
}

// Bias, activation and the way into y of cells [outputs][kWidth], which are changed.
template <class V, int64_t kWidth, class Value>
static void finish_cells(const CallOf<Value>& call, int64_t output, int64_t outputs, int64_t tokens,
                         float* cells, Value* y) {
  if (call.bias != nullptr) {
    for (int64_t n = 0; n < outputs; ++n) {
      const float shift = widened(call.bias[output + n]);
      for (int64_t t = 0; t < kWidth; ++t) cells[n * kWidth + t] += shift;
    }
  }
  if (call.activation != Activation::kNone) {
    activate_rows<V>(cells, 0, 1, outputs * kWidth, call.activation);
  }
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t t = 0; t < tokens; ++t) {
      round_to(cells[n * kWidth + t], y + t * call.y_stride + output + n);
    }
  }
}
