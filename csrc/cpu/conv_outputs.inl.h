// Convolutions with blocks of which a vector of outputs is held for each of up to 28 pixels, in
// one, two or four rows. Included inside an ISA region, once for each ISA namespace.
//
//   acc[t] += weights[k] * splat(pixels[offset[k]][t])
//
// For each input: a weight load and a splat for each multiply-add, so it is for cores that load as
// often as they multiply-add. Pixels are read one by one, which lets its panels be of any shape,
// kRows x kColumns pixels that are kStep places apart: no stride has to be taken apart, no place
// between rows is computed, and x is read itself where no padding surrounds it.

// kStep: 0 for any.
template <class V, int kRows, int kColumns, int kStep>
struct ConvOutputsStrip {
  using Reg = typename V::Reg;
  static constexpr int kPixels = kRows * kColumns;
  static constexpr int64_t kWeightsAhead = 16;  // in inputs

  // A vector of outputs of a block row, from `offset` on, into rows `to_stride` apart, one a pixel.
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, int64_t row, int64_t offset, Reg start,
                                      const int32_t* offsets, const float* x, int64_t pitch,
                                      int64_t step, Activation activation, float* to,
                                      int64_t to_stride) {
    Reg acc[kPixels];
    SPARSEKERN_UNROLL
    for (int t = 0; t < kPixels; ++t) acc[t] = start;
    const int64_t rows = a.rows, cols = a.cols;
    const int64_t begin = a.offsets[row], end = a.offsets[row + 1];
    const float* w = a.values + begin * cols * rows + offset;
    for (const uint16_t *column = a.columns + begin, *last = a.columns + end; column < last;
         ++column) {
      const int32_t *at = offsets + *column * cols, *const at_end = at + cols;
      for (; at < at_end; ++at, w += rows) {
        prefetch(w + kWeightsAhead * rows);
        const Reg weights = V::load(w);
        const float* line = x + *at;
        SPARSEKERN_UNROLL
        for (int r = 0; r < kRows; ++r, line += pitch) {
          const float* pixel = line;
          SPARSEKERN_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            Reg& sum = acc[r * kColumns + c];
            sum = V::fma(weights, V::splat(pixel), sum);
            pixel += kStep > 0 ? kStep : step;
            // An addition for each, not a product in a register of its own, of which there are few.
            if (kStep == 0) __asm__("" : "+r"(pixel));
          }
        }
      }
    }
    const Bounds<V> bounds(activation);
    SPARSEKERN_UNROLL
    for (int t = 0; t < kPixels; ++t, to += to_stride) V::store(to, bounds.apply(acc[t]));
  }
};

template <class V, int kMostPixels>
struct ConvOutputs {
  using Vec = V;
  using Matrix = BlockMatrix;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPanel = kMostPixels;
  static constexpr int64_t kMostStep = 2;

  template <class T>
  static void run_chunk(const BlockMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        int64_t first_pixel, const ConvRoom& room, const float* bias, T* y) {
    const Chunk<T> chunk{a, call, room, bias, y, band.pitch, band.step};
    // Rows of short images are taken several at a time, for which they have to be whole.
    const bool is_one = !band.has_gaps();
    const int64_t columns = is_one ? band.rows * band.columns : band.columns;
    const int64_t rows = is_one ? 1 : band.rows;
    // Where channels lie side by side each pixel is a line of its own for every input: fewer of
    // them, for L1 holds both these and those of y.
    const bool is_near = band.step == 1 || band.step == 2;
    const int64_t most = is_near ? kPanel : kLanes;
    int64_t row = 0;
    const auto run = [&](auto rows_at_once) {
      constexpr int kRows = decltype(rows_at_once)::value;
      constexpr int kColumns = kMostPixels / kRows;
      if (kRows > 1 && (columns > kColumns || !is_near)) return;
      const int64_t parts = ceil_div(columns, min64(kColumns, most));
      for (; row + kRows <= rows; row += kRows) {
        for (int64_t i = 0; i < parts; ++i) {
          const int64_t begin = columns * i / parts, count = columns * (i + 1) / parts - begin;
          const float* const x = band.base + row * band.pitch + begin * band.step;
          const int64_t pixel = first_pixel + row * columns + begin;
          with_vectors<kColumns>(count, [&](auto some) {
            constexpr int kSome = decltype(some)::value;
            if (band.step == 1) {
              run_panel<kRows, kSome, 1>(chunk, x, pixel);
            } else if (band.step == 2) {
              run_panel<kRows, kSome, 2>(chunk, x, pixel);
            } else if constexpr (kRows == 1 && kSome <= kLanes) {
              run_panel<kRows, kSome, 0>(chunk, x, pixel);
            }
          });
        }
      }
    };
    run(Constant<4>());
    run(Constant<2>());
    run(Constant<1>());
  }

 private:
  // What all panels of a chunk share.
  template <class T>
  struct Chunk {
    const BlockMatrix& a;
    const ConvCallOf<T>& call;
    const ConvRoom& room;
    const float* bias;
    T* y;  // the image's, of the chunk's first output
    int64_t pitch, step;
  };

  // All outputs of the chunk for the pixels from `pixel` of the image on, which x is of.
  template <int kRows, int kColumns, int kStep, class T>
  static void run_panel(const Chunk<T>& chunk, const float* x, int64_t pixel) {
    using Strip = ConvOutputsStrip<V, kRows, kColumns, kStep>;
    constexpr int kPixels = Strip::kPixels;
    const BlockMatrix& a = chunk.a;
    const ConvCallOf<T>& call = chunk.call;
    alignas(64) float sums[kPixels * kLanes];
    T* y = chunk.y + pixel * call.y_pixel;
    for (int64_t n = 0; n < a.out_features; n += kLanes, y += kLanes * call.y_channel) {
      const int valid = (int)min64(kLanes, a.out_features - n);
      const typename V::Reg start = chunk.bias == nullptr ? V::zero()
                                    : valid == kLanes     ? V::load(chunk.bias + n)
                                                          : V::load_first(chunk.bias + n, valid);
      const auto run = [&](float* to, int64_t stride) {
        Strip::run(a, n / a.rows, n % a.rows, start, chunk.room.offsets, x, chunk.pitch, chunk.step,
                   call.activation, to, stride);
        if (is_more_than_bounds(call.activation)) {
          activate_rows<V>(to, stride, kPixels, kLanes, call.activation);
        }
      };
      if constexpr (sizeof(T) == sizeof(float)) {
        if (call.y_channel == 1 && valid == kLanes) {
          run(y, call.y_pixel);
          continue;
        }
      }
      run(sums, kLanes);
      if (call.y_channel == 1) {
        for (int t = 0; t < kPixels; ++t) {
          const typename V::Reg outputs = V::load(sums + t * kLanes);
          if (valid == kLanes) {
            store_all<V>(y + t * call.y_pixel, outputs);
          } else {
            store_first<V>(y + t * call.y_pixel, outputs, valid);
          }
        }
      } else {
        write_lines<kPixels>(sums, valid, y, call.y_channel);
      }
    }
  }

  // Sums of so many pixels, side by side in y, transposed.
  template <int kPixels, class T>
  static SPARSEKERN_INLINE void write_lines(const float* sums, int valid, T* y, int64_t y_channel) {
    SPARSEKERN_UNROLL
    for (int t = 0; t < kPixels; t += kLanes) {
      const int some = kPixels - t < kLanes ? kPixels - t : kLanes;
      typename V::Reg line[kLanes];
      V::load_transposed(sums + t * kLanes, kLanes, some, line);
      T* to = y + t;
      SPARSEKERN_UNROLL
      for (int n = 0; n < kLanes; ++n, to += y_channel) {
        if (n >= valid) break;
        if (some == kLanes) {
          store_all<V>(to, line[n]);
        } else {
          store_first<V>(to, line[n], some);
        }
      }
    }
  }
};
