// Kernels for weights that stand alone: each output has its own inputs. Vectors of tokens, one
// output at a time, as single_rows.inl.h says. Included inside an ISA region.

template <class V, int kMostVectors, int kCopies>
struct SingleFamily {
  static constexpr KernelFamily kFamily = KernelFamily::kSingle;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kTileOutputs = 1, kTileLanes = kLanes;
  static constexpr bool kForFewTokens = kCopies > 1;
  static constexpr int64_t kQuantum = kLanes;

  // Of the panel's share of a K-tile, at most, if a block or a group tile is no wider: of an L1,
  // the rest of which serves weights and cells. Where several copies of a sum end with the tile,
  // its depth is the same on every CPU, for so must be the order of the sum.
  static int64_t tile_bytes(const Share& share) {
    return (kForFewTokens ? 32 * 1024 : share.l1_bytes) / 4 * 3;
  }

  template <class Weights>
  static void run_panel(const typename Weights::Matrix& a, const LinearCall& call,
                        const Share& share, const float* panel, int64_t tokens, float* y) {
    constexpr int64_t kWidth = Weights::Sums::kWidth;
    float* const cells = share.scratch;
    int32_t* const cursors = reinterpret_cast<int32_t*>(cells + kMostCells);
    // Several copies of a sum end with the tile, and the order of a sum must not depend on the
    // panel: tokens that are shared between threads fill one, and how far they fill others varies.
    const bool one_panel = share.token_end - share.token_begin < kPanel;
    const int64_t width = !kForFewTokens || one_panel ? kWidth : kPanel;
    const int64_t quantum = a.input_quantum();
    const int64_t depth = max64(1, tile_bytes(share) / (4 * width * quantum)) * quantum;
    const auto add = [&](int64_t begin, int64_t end, int64_t input_begin, int64_t input_end) {
      Weights::add(a, begin, end, SingleTile{panel, input_begin, input_end}, cursors, cells);
    };
    const auto finish = [&](int64_t begin, int64_t end) {
      for_each_line<kLine>(begin, end, [&](int64_t n, int64_t outputs) {
        write_cells<V, kWidth>(cells + (n - begin) * kWidth, outputs, true,
                               call.bias ? call.bias + n : nullptr, tokens, y + n, call.y_stride);
      });
      if (call.activation != Activation::kNone) {
        activate_rows<V>(y + begin, call.y_stride, tokens, end - begin, call.activation);
      }
    };
    for_each_chunk<Weights, kWidth, kLine>(a, share, depth, cursors, add, finish);
  }

  // With<MV>::type: the weights for so many vectors.
  template <template <int> class With, class Matrix>
  static void run_with(const Matrix& a, const LinearCall& call, const Share& share) {
    float* const panel = share.scratch + kMostCells + kMostCursors;
    // Where the least K-tile of a full panel is more than L1 holds, panels are narrower.
    const int64_t fitting = tile_bytes(share) / (4 * a.input_quantum()) / kLanes * kLanes;
    const int64_t panels =
        ceil_div(share.token_end - share.token_begin,
                 max64(kLanes, min64(single_panel(kPanel, density_of(a)), fitting)));
    for_each_panel<SingleFamily>(share, panels, [&](int64_t token, int64_t tokens) {
      pack_panel<V>(call.x + token * call.x_stride, call.x_stride, tokens, a.in_features,
                    a.padded_in_features(), panel);
      with_vectors<kMostVectors>(ceil_div(tokens, kLanes), [&](auto vectors) {
        run_panel<typename With<decltype(vectors)::value>::type>(a, call, share, panel, tokens,
                                                                 call.y + token * call.y_stride);
      });
    });
  }
};

// Rows: the family that takes single weights for as few tokens as it names; void for none.
template <class V, int kMostVectors, int kCopies, class Rows = void>
struct SingleBlocks : SingleFamily<V, kMostVectors, kCopies> {
  using Matrix = BlockMatrix;
  template <int MV>
  struct With {
    using type = BlockWeights<V, MV, kCopies>;
  };

  static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
    if constexpr (SingleBlocks::kForFewTokens) {
      // A call of more tokens gives no thread as few, so the threads do not decide.
      static_assert(SingleBlocks::kPanel > Rows::kMostTokens, "a share of several");
      if (a.rows * a.cols == 1 && share.token_end - share.token_begin <= Rows::kMostTokens) {
        Rows::run_share(a, call, share);
        return;
      }
    }
    SingleBlocks::template run_with<With>(a, call, share);
  }
};

template <class V, int kMostVectors, int kCopies>
struct SingleNM : SingleFamily<V, kMostVectors, kCopies> {
  using Matrix = NMMatrix;
  template <class Of>
  struct WeightsOf {
    template <int MV>
    struct With {
      using type = NMWeights<V, MV, kCopies, Of::kN, Of::kM, Of::kBits>;
    };
  };

  static void run_share(const NMMatrix& a, const LinearCall& call, const Share& share) {
    with_pattern(a, [&](auto pattern) { run<decltype(pattern)>(a, call, share); });
  }

  template <class Of>
  static void run(const NMMatrix& a, const LinearCall& call, const Share& share) {
    constexpr int64_t kMostTokens = V::template Picks<Of::kN, Of::kM>::kMostTokens;
    if constexpr (SingleNM::kForFewTokens && kMostTokens > 0) {
      // A call of more tokens gives no thread as few, so the threads do not decide.
      static_assert(SingleNM::kPanel > kMostTokens, "a share of several");
      if (share.token_end - share.token_begin <= kMostTokens) {
        PicksFamily<V, float, Of::kN, Of::kM>::run_share(a, call, share);
        return;
      }
    }
    SingleNM::template run_with<WeightsOf<Of>::template With>(a, call, share);
  }
};
