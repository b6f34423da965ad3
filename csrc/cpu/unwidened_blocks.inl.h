// A few tokens of bfloat16 blocks, whose weights are widened as they come from memory
// (cpu/unwidened.inc). Included inside an ISA region, once for each ISA namespace.

// kSums: of vectors, that registers hold.
template <class V, class Wide, int64_t kMost, int kSums>
struct FewOfBFloat16 {
  using Matrix = BlockMatrixOf<BFloat16>;
  static constexpr int64_t kMostTokens = kMost;
  static_assert(kMost <= kMostFewTokens, "sums of a block row");

  template <int T>
  static void run_tokens(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    const int64_t tokens = share.token_end - share.token_begin;
    if constexpr (T < kMost) {
      if (tokens > T) return run_tokens<wider(T)>(a, call, share);
    }
    float* const sums = share.scratch;
    float* const panel = sums + kMostCells;
    pack_side_by_side<T>(call.x + share.token_begin * call.x_stride, call.x_stride, tokens,
                         a.in_features, a.padded_in_features(), panel);
    const int64_t rows = kMostCells / (T * a.rows);
    int64_t end;
    for (int64_t begin = share.row_begin; begin < share.row_end; begin = end) {
      end = min64(share.row_end, begin + rows);
      const int64_t output = begin * a.rows;
      const int64_t outputs = min64(end * a.rows, a.out_features) - output;
      VectorRows<BFloat16, V, 1, T, min64(4, kSums / T)>::run(
          a, begin, end, panel, OutputRows{sums - output, outputs, tokens, nullptr});
      for (int64_t t = 0; t < tokens; ++t) {
        finish_cells<Wide, 1>(call, output, outputs, 1, sums + t * outputs,
                              call.y + (share.token_begin + t) * call.y_stride);
      }
    }
  }

  // At most kMost tokens.
  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    run_tokens<1>(a, call, share);
  }
};
