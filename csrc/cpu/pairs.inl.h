// Kernels of bfloat16 that hold vectors of tokens: dot products of pairs, R outputs at a time.
// Included inside an ISA region.
//
//   acc[r][m] += splat(weights of r for k and l) . (x[k][m], x[l][m])
//
// Blocks of an even width make pairs of neighbours. Of others, two inputs that follow one another
// in a block row make a pair, whichever they are, which costs two shuffles for two vectors of
// tokens. For each pair: MV loads, R splats, R * MV dot products.
//
//   for a batch of tokens:       pack them, panel by panel
//     for a chunk of outputs:    pair its weights, which then stay in L2
//       for a panel:             strip by strip; a cache line of outputs is then written as it is
//
// Sums stay in registers from the first input to the last, and are rounded once.

// R outputs, MV vectors of tokens.
template <class V, int R, int MV, bool kNeighbours>
struct PairsStrip {
  using Reg = typename V::Reg;
  using Pairs = typename V::Pairs;
  using Wide = typename V::Wide;
  static constexpr int64_t kWidth = PairsPanel<V, kNeighbours>::width(MV * V::kLanes);
  static constexpr int64_t kWeightsAhead = 8;  // in pairs

  static SPARSEKERN_INLINE void load(const BFloat16* panel, const uint32_t* row, Pairs token[MV]) {
    const BFloat16* const x = panel + row[0] * kWidth;
    if constexpr (kNeighbours) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) token[m] = V::load(x + m * V::kLine);
    } else {
      const BFloat16* const other = panel + row[1] * kWidth;
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; m += 2) {
        const Pairs a = V::load(x + m / 2 * V::kLine), b = V::load(other + m / 2 * V::kLine);
        token[m] = V::pair_low(a, b);
        if (m + 1 < MV) token[m + 1] = V::pair_high(a, b);
      }
    }
  }

  // The strip's outputs, rounded, as pairs of them: cells [R / 2][MV][16].
  static SPARSEKERN_NOINLINE void add(const PairedStrip& strip, const float* bias,
                                      Activation activation, const BFloat16* panel,
                                      LinesAhead<BFloat16>& lines, Pairs* cells) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = Wide::splat(bias + r);
    }
    const uint32_t* w = strip.weights;
    const uint32_t* row = strip.rows;
    for (const uint32_t* const end = w + strip.pairs * R; w < end;
         w += R, row += kNeighbours ? 1 : 2) {
      if (lines.left() > 0) lines.fetch();
      __builtin_prefetch(w + kWeightsAhead * R);
      Pairs token[MV];
      load(panel, row, token);
      SPARSEKERN_UNROLL
      for (int r = 0; r < R; ++r) {
        const Pairs weight = V::splat(w + r);
        SPARSEKERN_UNROLL
        for (int m = 0; m < MV; ++m) acc[r][m] = V::dot(weight, token[m], acc[r][m]);
      }
    }
    if (activation != Activation::kNone) {
      SPARSEKERN_UNROLL
      for (int r = 0; r < R; ++r) {
        for (int m = 0; m < MV; ++m) acc[r][m] = activate<Wide>(acc[r][m], activation);
      }
    }
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; r += 2) {
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) cells[r / 2 * MV + m] = V::round_pairs(acc[r][m], acc[r + 1][m]);
    }
  }

  // Outputs [begin, end) for the tokens of one panel; `y` is of the first output.
  static void run(const PairedStrip* strip, const CallOf<BFloat16>& call, int64_t begin,
                  int64_t end, int64_t out_features, const BFloat16* panel, int64_t tokens,
                  AheadOf<BFloat16> x_ahead, AheadOf<BFloat16>& weights_ahead, BFloat16* y) {
    alignas(64) Pairs cells[V::kLine / 2 * MV];
    int64_t line_end;
    for (int64_t line = begin; line < end; y += line_end - line, line = line_end) {
      line_end = min64(end, (line / V::kLine + 1) * V::kLine);
      LinesAhead<BFloat16> lines(y, call.y_stride, tokens);
      for (int64_t n = line; n < line_end; n += R, ++strip) {
        x_ahead.fetch_some();
        weights_ahead.fetch_some();
        float bias[R] = {};
        for (int64_t r = 0; call.bias != nullptr && r < min64(R, out_features - n); ++r) {
          bias[r] = V::widened(call.bias[n + r]);
        }
        add(*strip, bias, call.activation, panel, lines, cells + (n - line) / 2 * MV);
      }
      write_pairs<V, MV>(cells, min64(line_end, out_features) - line, tokens, y, call.y_stride);
    }
  }
};

template <class V, int R, int kMostVectors>
struct PairsFamily {
  using Matrix = BlockMatrixOf<BFloat16>;
  using Call = CallOf<BFloat16>;
  using Ahead = AheadOf<BFloat16>;
  static constexpr KernelFamily kFamily = KernelFamily::kPairs;
  static constexpr int64_t kPanel = kMostVectors * V::kLanes;
  static constexpr int64_t kTileOutputs = R, kTileLanes = V::kLanes;
  static constexpr int64_t kQuantum = V::kLanes;

  // The values of the outputs after `end`, as many as are likely to make the next chunk.
  static Ahead next_weights(const Matrix& a, int64_t begin, int64_t end, int64_t outputs_end,
                            int64_t calls) {
    const auto stored = [&](int64_t output) { return a.stored_before(ceil_div(output, a.rows)); };
    const int64_t next = stored(end);
    const int64_t count = stored(min64(outputs_end, 2 * end - begin)) - next;
    return count > 0 ? Ahead(a.values + next, 0, 1, count, calls) : Ahead();
  }

  template <bool kNeighbours>
  static void run(const Matrix& a, const Call& call, const Share& share) {
    using Panel = PairsPanel<V, kNeighbours>;
    PairedChunk<V, R, kNeighbours> chunk(share.scratch, a.padded_in_features());
    BFloat16* const packed = static_cast<BFloat16*>(chunk.end());
    const int64_t total = share.token_end - share.token_begin;
    const int64_t batches = ceil_div(total, pairs_batch(a.padded_in_features()));
    // Whole strips: what the last one has beyond the outputs is multiplied and not written.
    const int64_t outputs_begin = share.row_begin * a.rows;
    const int64_t outputs_end = min64(share.row_end * a.rows, ceil_div(a.out_features, R) * R);
    for (int64_t batch = 0; batch < batches; ++batch) {
      const int64_t first = share.token_begin + split_evenly<PairsFamily>(total, batch, batches);
      const int64_t tokens =
          share.token_begin + split_evenly<PairsFamily>(total, batch + 1, batches) - first;
      const int64_t panels = ceil_div(tokens, kPanel);
      int64_t end;
      for (int64_t begin = outputs_begin; begin < outputs_end; begin = end) {
        end = chunk.fill(a, begin, outputs_end);
        const int64_t strips = (end - begin) / R;
        Ahead weights_ahead = next_weights(a, begin, end, outputs_end, strips * panels);
        BFloat16* panel = packed;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t t = split_evenly<PairsFamily>(tokens, p, panels);
          const int64_t count = split_evenly<PairsFamily>(tokens, p + 1, panels) - t;
          const BFloat16* const x = call.x + (first + t) * call.x_stride;
          Ahead x_ahead;
          if (begin == outputs_begin) {
            Panel::pack(x, call.x_stride, count, a.in_features, a.padded_in_features(), panel);
            if (p + 1 < panels) {
              const int64_t next = split_evenly<PairsFamily>(tokens, p + 2, panels) - t - count;
              x_ahead =
                  Ahead(x + count * call.x_stride, call.x_stride, next, a.in_features, strips);
            }
          }
          run_panel<kNeighbours>(chunk.strips(), call, begin, end, a.out_features, panel, count,
                                 x_ahead, weights_ahead,
                                 call.y + (first + t) * call.y_stride + begin);
          panel += Panel::rows(a.padded_in_features()) * Panel::width(count);
        }
      }
    }
  }

  template <bool kNeighbours, int MV = kMostVectors>
  static void run_panel(const PairedStrip* strips, const Call& call, int64_t begin, int64_t end,
                        int64_t out_features, const BFloat16* panel, int64_t tokens,
                        const Ahead& x_ahead, Ahead& weights_ahead, BFloat16* y) {
    if (ceil_div(tokens, V::kLanes) == MV) {
      PairsStrip<V, R, MV, kNeighbours>::run(strips, call, begin, end, out_features, panel, tokens,
                                             x_ahead, weights_ahead, y);
    } else if constexpr (MV > 1) {
      run_panel<kNeighbours, MV - 1>(strips, call, begin, end, out_features, panel, tokens, x_ahead,
                                     weights_ahead, y);
    }
  }

  static void run_share(const Matrix& a, const Call& call, const Share& share) {
    if (a.cols % 2 == 0) {
      run<true>(a, call, share);
    } else {
      run<false>(a, call, share);
    }
  }
};
