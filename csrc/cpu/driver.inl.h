// The loop nest around every kernel. Included inside an ISA region, once for each ISA namespace.
//
//   for a batch of tokens that fits the scratch:   pack it into panels
//     for a chunk of block rows that fits in L2:   find where each K-tile begins in each block row
//       for each panel:                            Family::run (K-tile, then block row, inside)
//                                                  activation, in place, while y is in L1
//
// Weights stay in L2 while all panels of the batch pass over them; the K-tile of a panel stays in
// L1 (or L2, for the wide panels of the "tokens" family) while the chunk's block rows pass over it.

constexpr int64_t kChunkBytes = 256 * 1024;
constexpr int64_t kSplitInts = 16 * 1024;

// Block rows [row_begin, row_end) and, for each of them, the first block of every K-tile:
// splits[(row - row_begin) * (tiles + 1) + tile].
struct Chunk {
  int64_t row_begin, row_end;
  int64_t tiles;
  const int32_t* splits;

  const int32_t* of_row(int64_t row) const { return splits + (row - row_begin) * (tiles + 1); }
};

// First block in [begin, end) whose column is not below `column`.
static inline int64_t lower_bound(const uint16_t* columns, int64_t begin, int64_t end,
                                  int64_t column) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (columns[middle] < column) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

static inline int64_t chunk_end(const BlockMatrix& a, int64_t row_begin, int64_t row_end,
                                int64_t most_rows) {
  const int64_t most_blocks = kChunkBytes / (a.rows * a.cols * (int64_t)sizeof(float));
  int64_t row = row_begin + 1;
  while (row < row_end && row - row_begin < most_rows &&
         a.offsets[row + 1] - a.offsets[row_begin] <= most_blocks) {
    ++row;
  }
  return row;
}

static inline void split_rows(const BlockMatrix& a, int64_t row_begin, int64_t row_end,
                              int64_t tiles, int64_t tile_columns, int32_t* splits) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    int64_t at = a.offsets[row];
    const int64_t end = a.offsets[row + 1];
    *splits++ = (int32_t)at;
    for (int64_t tile = 1; tile < tiles; ++tile) {
      at = lower_bound(a.columns, at, end, tile * tile_columns);
      *splits++ = (int32_t)at;
    }
    *splits++ = (int32_t)end;
  }
}

template <class V>
static void activate_rows(float* y, int64_t stride, int64_t tokens, int64_t outputs,
                          Activation activation) {
  for (int64_t t = 0; t < tokens; ++t, y += stride) {
    int64_t n = 0;
    for (; n + V::kLanes <= outputs; n += V::kLanes) {
      V::store(y + n, activate<V>(V::load(y + n), activation));
    }
    if (n < outputs) {
      const int rest = (int)(outputs - n);
      V::store_first(y + n, activate<V>(V::load_first(y + n, rest), activation), rest);
    }
  }
}

template <class Family>
static void run_share(const BlockMatrix& a, const LinearCall& call, const Share& share) {
  const int64_t padded = a.padded_in_features();
  const int64_t block_columns = padded / a.cols;
  int32_t* splits = reinterpret_cast<int32_t*>(share.scratch);
  float* cells = share.scratch + kSplitInts;
  float* packed = cells + Family::kCellFloats;
  const int64_t room = share.scratch_floats - (packed - share.scratch) - Family::kSlack;

  const int64_t most_panels = max64(1, room / (padded * Family::width(Family::kPanel)));
  const int64_t total = share.token_end - share.token_begin;
  const int64_t batches = ceil_div(ceil_div(total, Family::kPanel), most_panels);
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t first = share.token_begin + total * batch / batches;
    const int64_t tokens = share.token_begin + total * (batch + 1) / batches - first;
    const int64_t panels = ceil_div(tokens, Family::kPanel);
    const auto begin_of = [&](int64_t panel) { return tokens * panel / panels; };
    const float* x = call.x + first * call.x_stride;

    const bool in_place = Family::width(1) == 1 && tokens == 1 && padded == a.in_features;
    float* at = packed;
    for (int64_t p = 0; p < panels && !in_place; ++p) {
      const int64_t begin = begin_of(p), count = begin_of(p + 1) - begin;
      Family::pack(x + begin * call.x_stride, call.x_stride, (int)count, a.in_features, at);
      pad_panel(at, a.in_features, padded, Family::width(count));
      at += padded * Family::width(count);
    }

    const int64_t widest = Family::width(ceil_div(tokens, panels));
    const int64_t tile_columns = max64(1, Family::kTileFloats / (widest * a.cols));
    const int64_t tiles = ceil_div(block_columns, tile_columns);
    const int64_t most_rows =
        max64(1, min64(kSplitInts / (tiles + 1), Family::kCellOutputs / a.rows));
    for (int64_t row = share.row_begin; row < share.row_end;) {
      const int64_t end = chunk_end(a, row, share.row_end, most_rows);
      split_rows(a, row, end, tiles, tile_columns, splits);
      const Chunk chunk{row, end, tiles, splits};
      const int64_t output = row * a.rows;
      const int64_t outputs = min64(end * a.rows, a.out_features) - output;
      const float* panel = in_place ? x : packed;
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t begin = begin_of(p), count = begin_of(p + 1) - begin;
        float* y = call.y + (first + begin) * call.y_stride + output;
        Family::run(a, call, chunk, panel, (int)count, y, cells);
        if (call.activation != Activation::kNone) {
          activate_rows<typename Family::Vec>(y, call.y_stride, count, outputs, call.activation);
        }
        panel += padded * Family::width(count);
      }
      row = end;
    }
  }
}
