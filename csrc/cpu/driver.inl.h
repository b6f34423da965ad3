// The loop nest around every kernel. Included inside an ISA region, once for each ISA namespace.
//
//   for a batch of tokens that fits the scratch:   pack it into panels, unless x is read in place
//     for a K-tile:
//       for a chunk of block rows whose share of the tile fits in L2:
//         for each panel:                          Family::run (block rows inside)
//                                                  after the last tile: activation, while y is near
//
// The K-tile of a panel stays in L1 (in L2 for the wide panels of the "tokens" family) while the
// chunk's block rows pass over it; the chunk's weights stay in L2 while all panels pass over them.

constexpr int64_t kLine = 16;  // floats of a cache line

static SPARSEKERN_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }

constexpr int64_t kChunkBytes = 256 * 1024;
constexpr int64_t kMostChunkRows = 4096;

// Block rows [row_begin, row_end), and which of their blocks [begin, end) fall into the K-tile:
// spans[2 * (row - row_begin)] and the entry after it.
struct Chunk {
  int64_t row_begin, row_end;
  bool first_tile, last_tile;
  const int32_t* spans;
};

// First block in [begin, end) whose column is not below `column`.
static inline int32_t lower_bound(const uint16_t* columns, int32_t begin, int32_t end,
                                  int64_t column) {
  int32_t count = end - begin;
  while (count > 0) {
    const int32_t half = count / 2;
    const bool below = columns[begin + half] < column;
    begin = below ? begin + half + 1 : begin;
    count = below ? count - half - 1 : half;
  }
  return begin;
}

// Collects block rows from `row` on until their blocks in the tile fill the chunk. `cursors` holds,
// for each block row of the share, the first block not yet passed; it moves on to the next tile.
static inline int64_t gather_chunk(const BlockMatrix& a, int64_t row, int64_t row_end,
                                   int64_t next_column, int32_t* cursors, int32_t* spans) {
  int64_t rows = kMostChunkRows;
  int64_t blocks = kChunkBytes / (a.rows * a.cols * (int64_t)sizeof(float));
  for (; row < row_end && rows > 0 && blocks > 0; ++row, --rows) {
    const int32_t begin = *cursors;
    const int32_t end = lower_bound(a.columns, begin, a.offsets[row + 1], next_column);
    *cursors++ = end;
    *spans++ = begin;
    *spans++ = end;
    blocks -= end - begin;
  }
  return row;
}

// Where part `part` of `parts` begins when `tokens` are shared out in whole quanta.
template <class Family>
static inline int64_t split_evenly(int64_t tokens, int64_t part, int64_t parts) {
  const int64_t quanta = ceil_div(tokens, Family::kQuantum);
  return min64(tokens, quanta * part / parts * Family::kQuantum);
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
  const int64_t share_rows = share.row_end - share.row_begin;
  int32_t* spans = reinterpret_cast<int32_t*>(share.scratch);
  int32_t* cursors = spans + 2 * kMostChunkRows;
  float* packed = share.scratch + 2 * kMostChunkRows + ceil_div(share_rows, kLine) * kLine;
  const int64_t room = share.scratch_floats - (packed - share.scratch) - Family::kSlack;

  const int64_t blocks = a.offsets[share.row_end] - a.offsets[share.row_begin];
  const double density = (double)blocks / (double)(share_rows * block_columns);

  const int64_t total = share.token_end - share.token_begin;
  const bool in_place = Family::in_place(a, call, min64(Family::kPanel, total), density);
  // Weights of a single chunk stay in L2 anyway: then a panel is packed when it is needed, into
  // memory that is still in cache from the one before.
  const bool one_chunk = blocks * a.rows * a.cols * (int64_t)sizeof(float) <= kChunkBytes;
  const int64_t most_panels =
      one_chunk ? 1 : max64(1, room / Family::panel_floats(padded, Family::kPanel));
  const int64_t batches = in_place ? 1 : ceil_div(ceil_div(total, Family::kPanel), most_panels);
  for (int64_t batch = 0; batch < batches; ++batch) {
    // Panels of a batch differ by at most one quantum: no panel is left with a small rest.
    const int64_t first = share.token_begin + split_evenly<Family>(total, batch, batches);
    const int64_t tokens =
        share.token_begin + split_evenly<Family>(total, batch + 1, batches) - first;
    const int64_t panels = ceil_div(tokens, Family::kPanel);
    const float* x = call.x + first * call.x_stride;

    float* at = packed;
    for (int64_t p = 0; p < panels && !in_place; ++p) {
      const int64_t begin = split_evenly<Family>(tokens, p, panels);
      const int64_t count = split_evenly<Family>(tokens, p + 1, panels) - begin;
      Family::pack(x + begin * call.x_stride, call.x_stride, count, a.in_features, padded, at);
      at += Family::panel_floats(padded, count);
    }

    // Not the widest panel of this batch: tiles, and so sums, must not depend on how tokens are
    // cut.
    const int64_t widest = min64(Family::kPanel, total);
    const int64_t most_columns =
        max64(1, min64(block_columns, Family::tile_inputs(widest) / a.cols));
    const int64_t tiles = ceil_div(block_columns, most_columns);
    const int64_t tile_columns = ceil_div(block_columns, tiles);
    for (int64_t i = 0; i < share_rows; ++i) cursors[i] = a.offsets[share.row_begin + i];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t row = share.row_begin; row < share.row_end;) {
        const int64_t end = gather_chunk(a, row, share.row_end, (tile + 1) * tile_columns,
                                         cursors + (row - share.row_begin), spans);
        const Chunk chunk{row, end, tile == 0, tile + 1 == tiles, spans};
        const int64_t output = row * a.rows;
        const int64_t outputs = min64(end * a.rows, a.out_features) - output;
        const float* panel = packed;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t begin = split_evenly<Family>(tokens, p, panels);
          const int64_t count = split_evenly<Family>(tokens, p + 1, panels) - begin;
          float* y = call.y + (first + begin) * call.y_stride + output;
          Family::run(a, call, chunk, in_place ? x + begin * call.x_stride : panel, in_place, count,
                      y);
          if (chunk.last_tile && call.activation != Activation::kNone) {
            activate_rows<typename Family::Vec>(y, call.y_stride, count, outputs, call.activation);
          }
          panel += Family::panel_floats(padded, count);
        }
        row = end;
      }
    }
  }
}
