// Weights of bfloat16 in pairs, for kernels that multiply R outputs at a time by pairs of inputs.
// Included inside an ISA region.

// What a strip of R outputs is multiplied with.
struct PairedStrip {
  const uint32_t* weights;  // [pairs][R]
  const uint32_t* rows;     // of the panel: one for each pair, or two
  int64_t pairs;
};

// Of the weights of consecutive outputs, as many as stay in L2.
template <class V, int R, bool kNeighbours>
class PairedChunk {
 public:
  using Matrix = BlockMatrixOf<BFloat16>;

  PairedChunk(float* scratch, int64_t padded_inputs)
      : room_(pairs_in_chunk(padded_inputs)),
        weights_(reinterpret_cast<uint32_t*>(scratch)),
        rows_(weights_ + room_ + kPairsSlack),
        strips_(reinterpret_cast<PairedStrip*>(rows_ + room_ / 2 + kPairsSlack)) {
    static_assert(sizeof(PairedStrip) <= 8 * sizeof(float), "scratch for strips");
  }

  const PairedStrip* strips() const { return strips_; }
  void* end() const { return reinterpret_cast<float*>(strips_) + 8 * kMostStrips; }

  // Pairs what outputs from `begin` on have, a cache line of them at least; returns the first one
  // beyond.
  int64_t fill(const Matrix& a, int64_t begin, int64_t outputs_end) {
    uint32_t *weights = weights_, *rows = rows_, *rows_end = rows_;
    PairedStrip* strip = strips_;
    int64_t listed_row = -1;
    while (begin < outputs_end) {
      const int64_t line_end = min64(outputs_end, (begin / V::kLine + 1) * V::kLine);
      if (strip != strips_ && (strip + V::kLine / R > strips_ + kMostStrips ||
                               weights + pairs_of(a, begin, line_end) > weights_ + room_)) {
        break;
      }
      while (begin < line_end) {
        const int64_t row = begin / a.rows, offset = begin % a.rows;
        const int64_t count = inputs_of(a, row), pairs = ceil_div(count, 2);
        if (row != listed_row) {
          rows = rows_end;
          rows_end = list_rows(a, row, rows);
          listed_row = row;
        }
        const BFloat16* const w = a.values + a.stored_before(row) + offset;
        const int64_t outputs = pair_some(w, a.rows, line_end - begin, count, weights);
        for (int64_t n = 0; n < outputs; n += R, weights += R * pairs) {
          *strip++ = {weights, rows, pairs};
        }
        begin += outputs;
      }
    }
    return begin;
  }

 private:
  static int64_t inputs_of(const Matrix& a, int64_t row) {
    return (a.offsets[row + 1] - a.offsets[row]) * a.cols;
  }

  // Pairs of weights that the outputs [begin, end) have.
  static int64_t pairs_of(const Matrix& a, int64_t begin, int64_t end) {
    int64_t pairs = 0;
    for (; begin < end; begin += R) pairs += R * ceil_div(inputs_of(a, begin / a.rows), 2);
    return pairs;
  }

  // Lists what the pairs of a block row are made of; returns the end.
  static uint32_t* list_rows(const Matrix& a, int64_t row, uint32_t* rows) {
    const int64_t begin = a.offsets[row], end = a.offsets[row + 1];
    const uint32_t step = (uint32_t)(kNeighbours ? a.cols / 2 : a.cols);
    if (step == 1) {
      for (int64_t block = begin; block < end; ++block) *rows++ = a.columns[block];
    } else {
      for (int64_t block = begin; block < end; ++block) {
        const uint32_t first = a.columns[block] * step;
        for (uint32_t j = 0; j < step; ++j) *rows++ = first + j;
      }
    }
    // A last input without another makes a pair with the row of zeros.
    if (!kNeighbours && inputs_of(a, row) % 2 == 1) *rows++ = (uint32_t)a.padded_in_features();
    return rows;
  }

  // Pairs the weights that one, two or more strips have of `count` inputs; returns for how many
  // outputs, at most `outputs`.
  static int64_t pair_some(const BFloat16* w, int64_t block_rows, int64_t outputs, int64_t count,
                           uint32_t* pairs) {
    if (block_rows == R) {
      pair_whole(w, count, pairs);
      return R;
    }
    if (R == 8 && block_rows % 16 == 0 && outputs >= 16) {
      pair_two(w, block_rows, count, pairs);
      return 16;
    }
    const BFloat16 zeros[R] = {};
    for (; count > 0; count -= 2, w += 2 * block_rows, pairs += R) {
      V::template pair_weights<R>(w, count > 1 ? w + block_rows : zeros, pairs);
    }
    return R;
  }

  // Weights of R outputs that follow one another; writes up to a vector beyond.
  static void pair_whole(const BFloat16* w, int64_t count, uint32_t* pairs) {
    const auto pairing = V::pairing_of(R);
    int64_t left = count * R;
    for (; left > 0; left -= V::kLine, w += V::kLine, pairs += V::kLanes) {
      V::store(pairs, V::paired(V::load_first(w, left), pairing));
    }
  }

  // Two strips of blocks that have 16 outputs side by side.
  static void pair_two(const BFloat16* w, int64_t block_rows, int64_t count, uint32_t* pairs) {
    const auto pairing = V::pairing_of(16);
    uint32_t* second = pairs + ceil_div(count, 2) * R;
    for (; count > 0; count -= 2, w += 2 * block_rows, pairs += R, second += R) {
      const auto weights = V::load_two(w, count > 1 ? w + block_rows : nullptr);
      V::store_halves(pairs, second, V::paired(weights, pairing));
    }
  }

  int64_t room_;
  uint32_t *weights_, *rows_;
  PairedStrip* strips_;
};
