// How kernels of single rows go through a product. Each output has its own inputs, so a vector of
// them serves one multiply-add, which L2 could not feed: a panel is walked through in K-tiles that
// stay in L1 while a chunk of outputs passes over them, and the sums of the chunk wait in L2
// (`cells` [outputs][kCells]) from tile to tile. Included inside an ISA region.
//
//   for a panel of tokens:  pack it
//     for a chunk of outputs:
//       for a K-tile:         Weights::add: onto the cells, output by output
//       write the cells into y

// A number, or a pattern, that is an argument and yet a constant.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <int kOfN, int kOfM, int kOfBits>
struct Pattern {
  static constexpr int kN = kOfN, kM = kOfM, kBits = kOfBits;
};

// Calls body(Pattern): n, m and the bits of a position where loops are unrolled for them, else 0.
template <class Matrix, class Body>
static void with_pattern(const Matrix& a, const Body& body) {
  const auto is = [&](int64_t n, int64_t m) { return a.n == n && a.m == m; };
  if (is(2, 4)) {
    body(Pattern<2, 4, 2>());
  } else if (is(1, 4)) {
    body(Pattern<1, 4, 2>());
  } else if (is(4, 8)) {
    body(Pattern<4, 8, 4>());
  } else if (is(8, 16)) {
    body(Pattern<8, 16, 4>());
  } else {
    body(Pattern<0, 0, 0>());
  }
}

// Calls body(Constant<vectors>), for 1 <= vectors <= kMost.
template <int kMost, class Body>
static SPARSEKERN_INLINE void with_vectors(int64_t vectors, const Body& body) {
  if (vectors == kMost) {
    body(Constant<kMost>());
  } else if constexpr (kMost > 1) {
    with_vectors<kMost - 1>(vectors, body);
  }
}

// Calls body(first token, tokens) for panels of nearly as many tokens each.
template <class Family, class Body>
static SPARSEKERN_INLINE void for_each_panel(const Share& share, int64_t panels, const Body& body) {
  const int64_t total = share.token_end - share.token_begin;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t begin = split_evenly<Family>(total, p, panels);
    body(share.token_begin + begin, split_evenly<Family>(total, p + 1, panels) - begin);
  }
}

// Calls finish(begin, end) for chunks of outputs, all of whose inputs are on the cells. A chunk
// begins with a line of y, of `kLineOutputs`, the first one excepted. add(begin, end, input begin,
// input end) adds a K-tile, `depth` inputs deep.
template <class Weights, int64_t kCells, int64_t kLineOutputs, class Add, class Finish>
static SPARSEKERN_INLINE void for_each_chunk(const typename Weights::Matrix& a, const Share& share,
                                             int64_t depth, int32_t* cursors, const Add& add,
                                             const Finish& finish) {
  constexpr int64_t kChunk = kMostCells / kCells / kLineOutputs * kLineOutputs;
  static_assert(kChunk > 0 && kMostCells / kCells <= kMostCursors, "a chunk");
  const int64_t outputs_end = Weights::outputs_before(a, share.row_end);
  int64_t end;
  for (int64_t n = Weights::outputs_before(a, share.row_begin); n < outputs_end; n = end) {
    end = min64(outputs_end, (n + kChunk) / kLineOutputs * kLineOutputs);
    Weights::start(a, n, end, cursors);
    for (int64_t input = 0; input < a.padded_in_features(); input += depth) {
      add(n, end, input, min64(input + depth, a.padded_in_features()));
    }
    finish(n, end);
  }
}

// Calls body(first output, outputs) for the lines of y, or parts of them, in a chunk.
template <int64_t kLineOutputs, class Body>
static SPARSEKERN_INLINE void for_each_line(int64_t begin, int64_t end, const Body& body) {
  int64_t line_end;
  for (int64_t line = begin; line < end; line = line_end) {
    line_end = min64(end, (line / kLineOutputs + 1) * kLineOutputs);
    body(line, line_end - line);
  }
}
