// Convolutions with blocks of which a vector of outputs is held: 16 outputs x T pixels, or as many
// as a vector has. Included inside an ISA region, once for each ISA namespace.
//
//   acc[t] += weights[k] * splat(pixels[offset[k]][t])
//
// For each input: a weight load and T splats for T multiply-adds, so it is for cores that load as
// often as they multiply-add. Its panels are of any number of pixels: images whose rows fill no
// vectors leave none of it idle.

template <class V, int T>
struct ConvOutputsStrip {
  using Reg = typename V::Reg;
  static constexpr int64_t kWeightsAhead = 16;  // in inputs

  static SPARSEKERN_INLINE void step(Reg acc[T], const float* w, const float* x) {
    const Reg weights = V::load(w);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = V::fma(weights, V::splat(x + t), acc[t]);
  }

  // A vector of outputs of a block row, from `offset` on, into rows `to_stride` apart, one a pixel.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, int64_t row, int64_t offset, Reg start,
                                      const int32_t* offsets, const float* x, Activation activation,
                                      float* to, int64_t to_stride) {
    Reg acc[T];
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = start;
    const int64_t rows = a.rows, cols = kSingleColumns ? 1 : a.cols;
    const int64_t begin = a.offsets[row], end = a.offsets[row + 1];
    const float* w = a.values + begin * cols * rows + offset;
    for (const uint16_t *column = a.columns + begin, *last = a.columns + end; column < last;
         ++column) {
      const int32_t* at = offsets + *column * cols;
      for (int64_t j = 0; j < cols; ++j, w += rows) {
        prefetch(w + kWeightsAhead * rows);
        step(acc, w, x + at[j]);
      }
    }
    const Bounds<V> bounds(activation);
    SPARSEKERN_UNROLL
    for (int t = 0; t < T; ++t, to += to_stride) V::store(to, bounds.apply(acc[t]));
  }
};

template <class V, int kMostPixels>
struct ConvOutputs {
  using Vec = V;
  using Matrix = BlockMatrix;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kVectors = kMostPixels;  // a panel is counted in pixels
  static constexpr int64_t kPanel = kMostPixels;
  static_assert(kMostPixels == V::kLanes, "sums are transposed as a square");

  // Parts of nearly equal length: of all pixels, if they lie side by side, else of each row, or of
  // some short rows with the padding between them.
  template <class Body>
  static void for_each_panel(const BlockMatrix&, const BandPixels& band, const Body& body) {
    const auto cut = [&](int64_t place, int64_t places) {
      const int64_t parts = ceil_div(places, kPanel);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t begin = places * i / parts;
        body(place + begin, places * (i + 1) / parts - begin);
      }
    };
    if (!band.has_gaps()) return cut(0, band.places());
    const int64_t fitting = max64(1, (kPanel - band.columns) / band.pitch + 1);
    const int64_t parts = ceil_div(band.rows, fitting);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t row = band.rows * i / parts, rows = band.rows * (i + 1) / parts - row;
      cut(row * band.pitch, (rows - 1) * band.pitch + band.columns);
    }
  }

  template <int T, class Number>
  static void run_panel(const BlockMatrix& a, const ConvCallOf<Number>& call,
                        const BandPixels& band, const ConvPanel& panel, const ConvRoom& room,
                        const float* bias, Number* y) {
    using Strip = ConvOutputsStrip<V, T>;
    const float* const x = band.base + panel.place;
    const PanelRuns<kPanel> runs(band, panel, T);
    const bool is_one = runs.count == 1 && runs.runs[0].count == T;
    alignas(64) float rows[T * kLanes], cells[kLanes * kLanes + kLanes];
    for (int64_t output = 0; output < a.out_features; output += kLanes) {
      const int64_t valid = min64(kLanes, a.out_features - output);
      const typename V::Reg start = bias == nullptr   ? V::zero()
                                    : valid == kLanes ? V::load(bias + output)
                                                      : V::load_first(bias + output, (int)valid);
      const auto run = [&](float* to, int64_t stride) {
        const auto strip = a.cols == 1 ? &Strip::template run<true> : &Strip::template run<false>;
        strip(a, output / a.rows, output % a.rows, start, room.offsets, x, call.activation, to,
              stride);
        if (is_more_than_bounds(call.activation)) {
          activate_rows<V>(to, stride, T, kLanes, call.activation);
        }
      };
      Number* const to = y + output * call.y_channel;
      if constexpr (sizeof(Number) == sizeof(float)) {
        if (is_one && call.y_channel == 1 && valid == kLanes) {
          run(to + runs.runs[0].pixel * call.y_pixel, call.y_pixel);
          continue;
        }
      }
      run(rows, kLanes);
      typename V::Reg column[kLanes];
      V::load_transposed(rows, kLanes, T, column);
      if (is_one && call.y_pixel == 1) {
        Number* line = to + runs.runs[0].pixel;
        SPARSEKERN_UNROLL
        for (int n = 0; n < kLanes; ++n, line += call.y_channel) {
          if (n >= valid) break;
          if (T == kLanes) {
            store_all<V>(line, column[n]);
          } else {
            store_first<V>(line, column[n], T);
          }
        }
      } else {
        SPARSEKERN_UNROLL
        for (int n = 0; n < kLanes; ++n) V::store(cells + n * kLanes, column[n]);
        write_pixels<V, kPanel>(cells, valid, runs, to, call.y_channel, call.y_pixel);
      }
    }
  }
};
