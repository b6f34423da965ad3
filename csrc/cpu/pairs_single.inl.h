// Kernels of bfloat16 for single rows: each output has its own inputs. Vectors of tokens, one
// output at a time. Included inside an ISA region.
//
//   acc[m] += splat(weights for k and l) . (x[k][m], x[l][m])
//
// Two weights that follow one another in a row make a pair. For each pair: a load and a shuffle for
// each dot product, so the panel is walked through in K-tiles that stay in L1, as in
// single.inl.h:
//
//   for a panel of tokens:  pack it
//     for a chunk of outputs:
//       for a K-tile:         Weights::add: onto the cells, output by output
//       round the cells into y
//
// The order in which a sum is taken does not depend on the panel.

// Rounds the sums of `outputs` outputs, in cells [outputs][MV][16], into y.
template <class V, int MV>
static void round_cells(const float* cells, int64_t outputs, const BFloat16* bias,
                        Activation activation, int64_t tokens, BFloat16* y, int64_t y_stride) {
  using Wide = typename V::Wide;
  alignas(64) typename V::Pairs pairs[V::kLine / 2 * MV];
  const auto sum_of = [&](int64_t n, int m) {
    const auto sum = Wide::load(cells + (n * MV + m) * V::kLanes);
    return bias == nullptr ? sum : Wide::add(sum, Wide::set(V::widened(bias[n])));
  };
  for (int64_t n = 0; n < outputs; n += 2) {
    const int64_t second = min64(n + 1, outputs - 1);
    for (int m = 0; m < MV; ++m) {
      pairs[n / 2 * MV + m] = V::round_pairs(activate<Wide>(sum_of(n, m), activation),
                                             activate<Wide>(sum_of(second, m), activation));
    }
  }
  write_pairs<V, MV>(pairs, outputs, tokens, y, y_stride);
}

template <class V, int kMostVectors>
struct PairsOfSingle {
  static constexpr KernelFamily kFamily = KernelFamily::kPairs;
  static constexpr int64_t kPanel = kMostVectors * V::kLanes;
  static constexpr int64_t kTileOutputs = 1, kTileLanes = V::kLanes;
  static constexpr int64_t kQuantum = V::kLanes;
  using Panel = PairsPanel<V, false>;

  template <class Weights, int MV>
  static void run_panel(const typename Weights::Matrix& a, const CallOf<BFloat16>& call,
                        const Share& share, const BFloat16* panel, int64_t tokens, BFloat16* y,
                        int32_t* cursors, float* cells, BFloat16* expanded) {
    constexpr int64_t kCells = Weights::Sums::kCells;
    constexpr int64_t kChunk = kMostCells / kCells / V::kLine * V::kLine;
    static_assert(kMostCells / kCells <= kMostCursors, "a chunk");
    const int64_t depth = Weights::depth(a, kPanel);
    const int64_t outputs_end = Weights::outputs_before(a, share.row_end);
    int64_t end;
    for (int64_t n = Weights::outputs_before(a, share.row_begin); n < outputs_end; n = end) {
      end = min64(outputs_end, (n + kChunk) / V::kLine * V::kLine);
      Weights::start(a, n, end, cursors);
      for (int64_t input = 0; input < a.padded_in_features(); input += depth) {
        const PairsTile tile{panel, input, min64(input + depth, a.padded_in_features()), expanded};
        Weights::add(a, n, end, tile, cursors, cells);
      }
      int64_t line_end;
      const float* cell = cells;
      for (int64_t line = n; line < end; cell += (line_end - line) * kCells, line = line_end) {
        line_end = min64(end, (line / V::kLine + 1) * V::kLine);
        round_cells<V, MV>(cell, line_end - line, call.bias ? call.bias + line : nullptr,
                           call.activation, tokens, y + line, call.y_stride);
      }
    }
  }

  // With<MV>::type: the weights for so many vectors.
  template <template <int> class With, int MV = kMostVectors, class Matrix, class... Rest>
  static void run_exact(const Matrix& a, const CallOf<BFloat16>& call, const Share& share,
                        const BFloat16* panel, int64_t tokens, Rest... rest) {
    if (ceil_div(tokens, V::kLanes) == MV) {
      run_panel<typename With<MV>::type, MV>(a, call, share, panel, tokens, rest...);
    } else if constexpr (MV > 1) {
      run_exact<With, MV - 1>(a, call, share, panel, tokens, rest...);
    }
  }

  template <template <int> class With, class Matrix>
  static void run_with(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    float* const cells = share.scratch;
    int32_t* const cursors = reinterpret_cast<int32_t*>(cells + kMostCells);
    BFloat16* const expanded = reinterpret_cast<BFloat16*>(cells + kMostCells + kMostCursors);
    BFloat16* const panel = expanded + kMostExpanded;
    const int64_t total = share.token_end - share.token_begin;
    const int64_t panels = ceil_div(total, kPanel);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t begin = share.token_begin + split_evenly<PairsOfSingle>(total, p, panels);
      const int64_t end = share.token_begin + split_evenly<PairsOfSingle>(total, p + 1, panels);
      Panel::pack(call.x + begin * call.x_stride, call.x_stride, end - begin, a.in_features,
                  a.padded_in_features(), panel);
      run_exact<With>(a, call, share, panel, end - begin, call.y + begin * call.y_stride, cursors,
                      cells, expanded);
    }
  }
};

template <class V, int kMostVectors>
struct PairsOfBlocks : PairsOfSingle<V, kMostVectors> {
  using Matrix = BlockMatrixOf<BFloat16>;
  template <int MV>
  struct With {
    using type = PairedRows<V, MV>;
  };

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    PairsOfBlocks::template run_with<With>(a, call, share);
  }
};

template <class V, int kMostVectors>
struct PairsOfNM : PairsOfSingle<V, kMostVectors> {
  using Matrix = NMMatrixOf<BFloat16>;
  template <int kN, int kM, int kBits>
  struct Of {
    template <int MV>
    struct With {
      using type = PairedGroups<V, MV, kN, kM, kBits>;
    };
  };
  template <int MV>
  struct Fours {
    using type = PairedFours<V, MV>;
  };

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    const auto is = [&](int64_t n, int64_t m) { return a.n == n && a.m == m; };
    if (is(2, 4)) {
      PairsOfNM::template run_with<Fours>(a, call, share);
    } else if (is(1, 4)) {
      PairsOfNM::template run_with<Of<1, 4, 2>::template With>(a, call, share);
    } else if (is(4, 8)) {
      PairsOfNM::template run_with<Of<4, 8, 4>::template With>(a, call, share);
    } else if (is(8, 16)) {
      PairsOfNM::template run_with<Of<8, 16, 4>::template With>(a, call, share);
    } else {
      PairsOfNM::template run_with<Of<0, 0, 0>::template With>(a, call, share);
    }
  }
};
