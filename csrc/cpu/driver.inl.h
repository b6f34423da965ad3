// The loop nest around the kernels of several tokens. Included inside an ISA region, once for each
// ISA namespace.
//
//   for a batch of tokens whose share of a K-tile fits the scratch:
//     for a K-tile:
//       for a chunk of block rows whose share of the tile fits in L2:
//         for a panel of tokens:  pack its share of the tile, unless that is done
//                                 Family::run (block rows inside)
//                                 after the last tile: activation, while y is near
//
// The chunk's weights stay in L2 while all panels pass over them, and so does the panel while it is
// multiplied by them. How much of L2 is whose is the family's to say.

constexpr int64_t kLine = 16;  // floats of a cache line

// Of the weights of a chunk, and of the floats of a panel, where L2 has 512 KiB.
constexpr int64_t kUsualChunk = 256 * 1024, kUsualPanelFloats = 48 * 1024;

static SPARSEKERN_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }

// Block rows [row_begin, row_end), and which of their blocks [begin, end) fall into the K-tile:
// spans[2 * (row - row_begin)] and the entry after it.
struct Chunk {
  int64_t row_begin, row_end;
  bool first_tile, last_tile;
  const int32_t* spans;
};

// Activations that the next panel will ask for. They are fetched into L2 little by little, strip by
// strip: asked for all at once, from memory, they would have to be waited for.
template <class T>
class AheadOf {
 public:
  AheadOf() = default;
  AheadOf(const T* x, int64_t stride, int64_t tokens, int64_t inputs, int64_t strips)
      : x_(x),
        gap_(stride - ceil_div(inputs, kPerLine) * kPerLine),
        lines_(ceil_div(inputs, kPerLine)),
        lines_left_(lines_),
        left_(tokens * lines_),
        step_(min64(kMostLines, ceil_div(left_, strips))) {}

  SPARSEKERN_INLINE void fetch_some() {
    for (const int64_t stop = max64(0, left_ - step_); left_ > stop; --left_, x_ += kPerLine) {
      __builtin_prefetch(x_, 0, 2);
      if (--lines_left_ == 0) {
        lines_left_ = lines_;
        x_ += gap_;
      }
    }
  }

 private:
  static constexpr int64_t kMostLines = 64;  // at once; a core has some twenty reads under way
  static constexpr int64_t kPerLine = 64 / sizeof(T);

  const T* x_ = nullptr;
  int64_t gap_ = 0;              // numbers from the last line of a row to the next row
  int64_t lines_ = 0;            // of a row
  int64_t lines_left_ = 0;       // of this row
  int64_t left_ = 0, step_ = 0;  // lines left of all rows, and to fetch at a time
};
using Ahead = AheadOf<float>;

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

// Collects block rows from `row` on, one at least, until their blocks in the tile fill the `bytes`
// of a chunk. `cursors` holds, for each block row of the share, the first block not yet passed; it
// moves on to the next tile.
static inline int64_t gather_chunk(const BlockMatrix& a, int64_t row, int64_t row_end,
                                   int64_t next_column, bool last_tile, int64_t bytes,
                                   int32_t* cursors, int32_t* spans) {
  int64_t rows = kMostChunkRows;
  int64_t room = bytes;
  const int64_t block_bytes = a.rows * a.cols * (int64_t)sizeof(float);
  for (; row < row_end && rows > 0 && room > 0; ++row, --rows) {
    const int32_t begin = *cursors;
    const int32_t row_end_block = a.offsets[row + 1];
    const int32_t end =
        last_tile ? row_end_block : lower_bound(a.columns, begin, row_end_block, next_column);
    *cursors++ = end;
    *spans++ = begin;
    *spans++ = end;
    room -= (end - begin) * block_bytes;
  }
  return row;
}

// Where part `part` of `parts` begins when `tokens` are shared out in whole quanta.
template <class Family>
static inline int64_t split_evenly(int64_t tokens, int64_t part, int64_t parts) {
  const int64_t quanta = ceil_div(tokens, Family::kQuantum);
  return min64(tokens, quanta * part / parts * Family::kQuantum);
}

// Known to the compiler, an activation needs no look at which one it is in each step of a loop that
// only loads and stores.
template <class V, Activation kActivation>
static void activate_rows_by(float* y, int64_t stride, int64_t tokens, int64_t outputs) {
  for (int64_t t = 0; t < tokens; ++t, y += stride) {
    int64_t n = 0;
    for (; n + V::kLanes <= outputs; n += V::kLanes) {
      V::store(y + n, activate<V>(V::load(y + n), kActivation));
    }
    if (n < outputs) {
      const int rest = (int)(outputs - n);
      V::store_first(y + n, activate<V>(V::load_first(y + n, rest), kActivation), rest);
    }
  }
}

template <class V>
static void activate_rows(float* y, int64_t stride, int64_t tokens, int64_t outputs,
                          Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return activate_rows_by<V, Activation::kRelu>(y, stride, tokens, outputs);
    case Activation::kGelu:
      return activate_rows_by<V, Activation::kGelu>(y, stride, tokens, outputs);
    case Activation::kSilu:
      return activate_rows_by<V, Activation::kSilu>(y, stride, tokens, outputs);
    case Activation::kRelu6:
      return activate_rows_by<V, Activation::kRelu6>(y, stride, tokens, outputs);
    case Activation::kHardswish:
      return activate_rows_by<V, Activation::kHardswish>(y, stride, tokens, outputs);
  }
}

template <class Family>
static void run_panels(const BlockMatrix& a, const LinearCall& call, const Share& share) {
  const int64_t block_columns = a.padded_in_features() / a.cols;
  const int64_t share_rows = share.row_end - share.row_begin;
  int32_t* spans = reinterpret_cast<int32_t*>(share.scratch);
  int32_t* cursors = spans + 2 * kMostChunkRows;
  float* packed = share.scratch + 2 * kMostChunkRows + ceil_div(share_rows, kLine) * kLine;
  const int64_t room = share.scratch_floats - (packed - share.scratch);

  // Of the whole matrix and the widest panel: tiles, and so the order of a sum, must not depend on
  // how the work is cut.
  const int64_t total = share.token_end - share.token_begin;
  const int64_t most_inputs = Family::most_inputs(min64(Family::kPanel, total));
  const int64_t most_columns = max64(1, min64(block_columns, most_inputs / a.cols));
  const int64_t tiles = ceil_div(block_columns, most_columns);
  const int64_t tile_columns = ceil_div(block_columns, tiles);
  const int64_t tile_inputs = tile_columns * a.cols;

  const int64_t all_panels = ceil_div(total, Family::kPanel);
  const int64_t most_panels = max64(1, room / Family::panel_floats(tile_inputs, Family::kPanel));
  const int64_t batches = ceil_div(all_panels, most_panels);
  for (int64_t batch = 0; batch < batches; ++batch) {
    // Panels of a batch differ by at most one quantum: no panel is left with a small rest.
    const int64_t first = share.token_begin + split_evenly<Family>(total, batch, batches);
    const int64_t tokens =
        share.token_begin + split_evenly<Family>(total, batch + 1, batches) - first;
    const int64_t panels = ceil_div(tokens, Family::kPanel);

    for (int64_t i = 0; i < share_rows; ++i) cursors[i] = a.offsets[share.row_begin + i];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t tile_begin = tile * tile_inputs;
      const int64_t inputs = min64(a.in_features - tile_begin, tile_inputs);
      for (int64_t row = share.row_begin; row < share.row_end;) {
        const int64_t end =
            gather_chunk(a, row, share.row_end, (tile + 1) * tile_columns, tile + 1 == tiles,
                         Family::kChunkBytes, cursors + (row - share.row_begin), spans);
        const Chunk chunk{row, end, tile == 0, tile + 1 == tiles, spans};
        // A panel that no further chunk will ask for leaves its place, still in cache, to the next
        // one.
        const bool keep = row != share.row_begin || end != share.row_end;
        const int64_t output = row * a.rows;
        const int64_t outputs = min64(end * a.rows, a.out_features) - output;
        float* panel = packed;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t begin = split_evenly<Family>(tokens, p, panels);
          const int64_t count = split_evenly<Family>(tokens, p + 1, panels) - begin;
          const float* x = call.x + (first + begin) * call.x_stride;
          float* y = call.y + (first + begin) * call.y_stride + output;
          Ahead ahead;
          if constexpr (Family::kStrip > 0) {
            if (row == share.row_begin && p + 1 < panels) {
              const int64_t next = split_evenly<Family>(tokens, p + 2, panels) - begin - count;
              ahead = Ahead(x + count * call.x_stride + tile_begin, call.x_stride, next, inputs,
                            ceil_div(outputs, Family::kStrip));
            }
          }
          if (row == share.row_begin) {
            Family::pack(x + tile_begin, call.x_stride, count, inputs, tile_inputs, panel);
          }
          Family::run(a, call, chunk, ahead, panel - tile_begin * Family::width(count), count, y);
          if (keep) panel += Family::panel_floats(tile_inputs, count);
          if (chunk.last_tile && call.activation != Activation::kNone) {
            activate_rows<typename Family::Vec>(y, call.y_stride, count, outputs, call.activation);
          }
        }
        row = end;
      }
    }
  }
}
