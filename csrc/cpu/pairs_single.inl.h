// Kernels of bfloat16 for single rows: each output has its own inputs. Vectors of tokens, one
// output at a time, as single_rows.inl.h says. Included inside an ISA region.
//
//   acc[m] += splat(weights for k and l) . (x[k][m], x[l][m])
//
// Two weights that follow one another in a row make a pair. For each pair: a load and a shuffle for
// each dot product. The order in which a sum is taken does not depend on the panel.

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
                        const Share& share, const BFloat16* panel, int64_t tokens, BFloat16* y) {
    constexpr int64_t kCells = Weights::Sums::kCells;
    float* const cells = share.scratch;
    int32_t* const cursors = reinterpret_cast<int32_t*>(cells + kMostCells);
    BFloat16* const expanded = reinterpret_cast<BFloat16*>(cells + kMostCells + kMostCursors);
    const auto add = [&](int64_t begin, int64_t end, int64_t input_begin, int64_t input_end) {
      const PairsTile tile{panel, input_begin, input_end, expanded};
      Weights::add(a, begin, end, tile, cursors, cells);
    };
    const auto finish = [&](int64_t begin, int64_t end) {
      for_each_line<V::kLine>(begin, end, [&](int64_t n, int64_t outputs) {
        round_cells<V, MV>(cells + (n - begin) * kCells, outputs,
                           call.bias ? call.bias + n : nullptr, call.activation, tokens, y + n,
                           call.y_stride);
      });
    };
    for_each_chunk<Weights, kCells, V::kLine>(a, share, Weights::depth(a, kPanel), cursors, add,
                                              finish);
  }

  // With<MV>::type: the weights for so many vectors.
  template <template <int> class With, class Matrix>
  static void run_with(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    BFloat16* const panel =
        reinterpret_cast<BFloat16*>(share.scratch + kMostCells + kMostCursors) + kMostExpanded;
    const int64_t panels = ceil_div(share.token_end - share.token_begin, kPanel);
    for_each_panel<PairsOfSingle>(share, panels, [&](int64_t token, int64_t tokens) {
      Panel::pack(call.x + token * call.x_stride, call.x_stride, tokens, a.in_features,
                  a.padded_in_features(), panel);
      with_vectors<kMostVectors>(ceil_div(tokens, V::kLanes), [&](auto vectors) {
        constexpr int MV = decltype(vectors)::value;
        run_panel<typename With<MV>::type, MV>(a, call, share, panel, tokens,
                                               call.y + token * call.y_stride);
      });
    });
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

// With<MV>::type: the weights of a pattern; 2:4 has its own.
template <class V, class Of>
struct PairedNM {
  template <int MV>
  struct With {
    using type = PairedGroups<V, MV, Of::kN, Of::kM, Of::kBits>;
  };
};
template <class V>
struct PairedNM<V, Pattern<2, 4, 2>> {
  template <int MV>
  struct With {
    using type = PairedFours<V, MV>;
  };
};

template <class V, int kMostVectors>
struct PairsOfNM : PairsOfSingle<V, kMostVectors> {
  using Matrix = NMMatrixOf<BFloat16>;

  static void run_share(const Matrix& a, const CallOf<BFloat16>& call, const Share& share) {
    with_pattern(a, [&](auto pattern) {
      PairsOfNM::template run_with<PairedNM<V, decltype(pattern)>::template With>(a, call, share);
    });
  }
};
