// Kernels of bfloat16 for a few tokens: vectors of weights as they lie in memory. Included inside
// an ISA region.
//
//   acc[t] += weights[outputs][inputs] . splat(x[t][inputs])       T tokens, Q inputs a step
//
// Weights are read once and put in order by a shuffle in registers. The inputs of a step are
// whichever follow one another in a block row; what the tokens have there is laid out beforehand,
// for some steps at a time and all strips of the block row. For each step: a load and a shuffle of
// weights, T loads, T dot products. The order in which a sum is taken does not depend on anything
// but the block row.

constexpr int64_t kDotsTokens = 16;
constexpr int64_t kDotsSteps = 32;     // laid out at a time: at most 8 KiB of tokens stay in L1
constexpr int64_t kDotsStrips = 8;     // of a block row, at a time
constexpr int64_t kDotsOutputs = 128;  // that go into y at a time: those of these strips, or more

// Inputs of a block row, one after the other.
template <bool kSingleColumns>
struct InputsOf {
  const uint16_t* column;
  int64_t cols, within;

  SPARSEKERN_INLINE int64_t next() {
    if constexpr (kSingleColumns) return *column++;
    const int64_t input = *column * cols + within;
    if (++within == cols) {
      within = 0;
      ++column;
    }
    return input;
  }
};

template <class V, int T, bool kSingleColumns>
struct DotsStrips {
  using Reg = typename V::Reg;
  using Matrix = BlockMatrixOf<BFloat16>;
  using Inputs = InputsOf<kSingleColumns>;
  static constexpr int Q = V::kInputs;
  static constexpr int64_t kStep = kDotsTokens * Q;  // numbers of a step's tokens
  // By which weights are fetched, 8 KiB: what memory takes to answer.
  static constexpr int64_t kAhead = 4096;

  static SPARSEKERN_INLINE void add(Reg acc[T], typename V::Numbers weights,
                                    const BFloat16* tokens) {
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = V::dot(weights, V::splat(tokens + t * Q), acc[t]);
  }

  // Adds `inputs` inputs of a strip to its sums. The rows of weights are `stride` apart, or follow
  // one another. A step of the strips that go together has as many lines as there are strips, and
  // each fetches one of them: `ahead`, from its weights.
  template <bool kDense>
  static SPARSEKERN_NOINLINE void add_strip(const BFloat16* w, int64_t stride, int64_t ahead,
                                            int64_t inputs, const BFloat16* tokens, Reg sums[T]) {
    Reg acc[T];
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = sums[t];
    const BFloat16* input[Q];
    for (; inputs >= Q; inputs -= Q, w += Q * stride, tokens += kStep) {
      __builtin_prefetch(w + ahead, 0, 2);
      if constexpr (kDense) {
        add(acc, V::weights(w), tokens);
      } else {
        SPARSEKERN_UNROLL
        for (int i = 0; i < Q; ++i) input[i] = w + i * stride;
        add(acc, V::weights(input), tokens);
      }
    }
    if (inputs > 0) {
      const BFloat16 none[V::kOutputs] = {};
      for (int i = 0; i < Q; ++i) input[i] = i < inputs ? w + i * stride : none;
      add(acc, V::weights(input), tokens);
    }
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) sums[t] = acc[t];
  }

  // What the tokens have for the next `inputs` inputs: [steps][tokens][Q]. `zeros` is for those
  // that a last step lacks.
  static SPARSEKERN_NOINLINE Inputs lay_out(Inputs from, int64_t inputs, const BFloat16* panel,
                                            int64_t zeros, BFloat16* tokens) {
    const BFloat16* input[Q];
    for (; inputs >= Q; inputs -= Q, tokens += kStep) {
      SPARSEKERN_UNROLL
      for (int i = 0; i < Q; ++i) {
        input[i] = panel + from.next() * kDotsTokens;
        // Computed as vectors, addresses would have to be taken apart.
        __asm__("" : "+r"(input[i]));
      }
      V::template by_token<T>(input, tokens);
    }
    if (inputs > 0) {
      for (int i = 0; i < Q; ++i) {
        input[i] = panel + (i < inputs ? from.next() : zeros) * kDotsTokens;
      }
      V::template by_token<T>(input, tokens);
    }
    return from;
  }

  // Sums of consecutive outputs, [tokens][kDotsOutputs], and their way into y.
  struct Cells {
    const CallOf<BFloat16>& call;
    int64_t token, tokens;
    int64_t output, outputs;  // the first one, and how many
    float* sums;

    // Bias, activation and rounding.
    SPARSEKERN_NOINLINE void write() {
      using Wide = avx512::Vec16;
      constexpr int64_t kLine = 2 * Wide::kLanes;
      for (int64_t n = 0; n < outputs; n += kLine) {
        const int valid = (int)min64(kLine, outputs - n);
        float bias[kLine] = {};
        for (int i = 0; call.bias != nullptr && i < valid; ++i) {
          bias[i] = Pairs16::widened(call.bias[output + n + i]);
        }
        const float* line = sums + n;
        BFloat16* y = call.y + token * call.y_stride + output + n;
        for (int64_t t = 0; t < tokens; ++t, y += call.y_stride, line += kDotsOutputs) {
          const auto finished = [&](int64_t lane) {
            const Reg sum = Wide::add(Wide::load(line + lane), Wide::load(bias + lane));
            return activate<Wide>(sum, call.activation);
          };
          V::store_rounded(y, finished(0), finished(Wide::kLanes), valid);
        }
      }
      output += outputs;
      outputs = 0;
    }

    // Makes room for `more` outputs.
    SPARSEKERN_INLINE void reserve(int64_t more) {
      if (outputs + more > kDotsOutputs) write();
    }
    SPARSEKERN_INLINE void add(const Reg strip[T], int64_t valid) {
      SPARSEKERN_UNROLL
      for (int t = 0; t < T; t += 4) {
        V::store_four(strip + t, sums + t * kDotsOutputs + outputs, kDotsOutputs);
      }
      outputs += valid;
    }
  };

  static void run(const Matrix& a, const CallOf<BFloat16>& call, const Share& share,
                  const BFloat16* panel, int64_t first, int64_t tokens) {
    constexpr int64_t kTogether = kDotsSteps * Q, kGroup = kDotsStrips * V::kOutputs;
    alignas(64) BFloat16 laid_out[kDotsSteps * kStep];
    alignas(64) float sums_of_outputs[T * kDotsOutputs];
    Cells cells{call, first, tokens, share.row_begin * a.rows, 0, sums_of_outputs};
    const int64_t zeros = a.padded_in_features();
    for (int64_t row = share.row_begin; row < share.row_end; ++row) {
      const BFloat16* const w = a.values + a.stored_before(row);
      const int64_t inputs = (a.offsets[row + 1] - a.offsets[row]) * a.cols;
      const int64_t rows = min64(a.rows, a.out_features - row * a.rows);
      for (int64_t begin = 0; begin < rows; begin += kGroup) {
        const int64_t end = min64(rows, begin + kGroup);
        Reg sums[kDotsStrips][T];
        for (int64_t s = 0; s * V::kOutputs < end - begin; ++s) {
          SPARSEKERN_UNROLL
          for (int t = 0; t < T; ++t) sums[s][t] = avx512::Vec16::zero();
        }
        Inputs from{a.columns + a.offsets[row], a.cols, 0};
        for (int64_t k = 0; k < inputs; k += kTogether) {
          const int64_t count = min64(kTogether, inputs - k);
          from = lay_out(from, count, panel, zeros, laid_out);
          for (int64_t n = begin, s = 0; n < end; n += V::kOutputs, ++s) {
            if (a.rows == V::kOutputs) {
              add_strip<true>(w + k * a.rows, a.rows, kAhead, count, laid_out, sums[s]);
            } else {
              const int64_t line = s * 32 / kGroup * a.rows + begin + s * 32 % kGroup;
              const int64_t ahead = kAhead + line - n;
              add_strip<false>(w + k * a.rows + n, a.rows, ahead, count, laid_out, sums[s]);
            }
          }
        }
        cells.reserve(ceil_div(end - begin, V::kOutputs) * V::kOutputs);
        for (int64_t n = begin, s = 0; n < end; n += V::kOutputs, ++s) {
          cells.add(sums[s], min64(V::kOutputs, end - n));
        }
      }
    }
    cells.write();
  }
};

template <class V, class Pairs>
struct DotsFamily {
  using Matrix = BlockMatrixOf<BFloat16>;
  using Call = CallOf<BFloat16>;
  static constexpr KernelFamily kFamily = KernelFamily::kPairs;
  static constexpr int64_t kPanel = kDotsTokens;
  static constexpr int64_t kTileOutputs = V::kOutputs, kTileLanes = 16;

  // [padded inputs + 1][16 tokens], the last one zeros; tokens that do not exist repeat the last
  // one.
  static void pack(const BFloat16* x, int64_t stride, int64_t tokens, int64_t inputs,
                   int64_t padded, BFloat16* panel) {
    int64_t k = 0;
    for (; k + 32 <= inputs; k += 32) {
      typename Pairs::Pairs pairs[16];
      PairsPanel<Pairs, true>::load(x + k, stride, 0, tokens, pairs);
      SPARSEKERN_UNROLL
      for (int i = 0; i < 16; ++i) {
        Pairs::store(panel + (k + 2 * i) * kDotsTokens, Pairs::one_by_one(pairs[i]));
      }
    }
    for (; k < inputs; ++k) {
      for (int64_t t = 0; t < kDotsTokens; ++t) {
        panel[k * kDotsTokens + t] = x[min64(t, tokens - 1) * stride + k];
      }
    }
    for (int64_t i = inputs * kDotsTokens; i < (padded + 1) * kDotsTokens; ++i) panel[i] = {0};
  }

  template <bool kSingleColumns>
  static void run(const Matrix& a, const Call& call, const Share& share, const BFloat16* panel,
                  int64_t first, int64_t tokens) {
    if (tokens <= 4) {
      DotsStrips<V, 4, kSingleColumns>::run(a, call, share, panel, first, tokens);
    } else if (tokens <= 8) {
      DotsStrips<V, 8, kSingleColumns>::run(a, call, share, panel, first, tokens);
    } else if (tokens <= 12) {
      DotsStrips<V, 12, kSingleColumns>::run(a, call, share, panel, first, tokens);
    } else {
      DotsStrips<V, 16, kSingleColumns>::run(a, call, share, panel, first, tokens);
    }
  }

  static void run_share(const Matrix& a, const Call& call, const Share& share) {
    BFloat16* const panel = reinterpret_cast<BFloat16*>(share.scratch);
    for (int64_t t = share.token_begin; t < share.token_end; t += kDotsTokens) {
      const int64_t tokens = min64(kDotsTokens, share.token_end - t);
      pack(call.x + t * call.x_stride, call.x_stride, tokens, a.in_features, a.padded_in_features(),
           panel);
      if (a.cols == 1) {
        run<true>(a, call, share, panel, t, tokens);
      } else {
        run<false>(a, call, share, panel, t, tokens);
      }
    }
  }
};
