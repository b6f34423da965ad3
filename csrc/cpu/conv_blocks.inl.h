// Convolutions with blocks: R outputs x MV vectors of pixels. Included inside an ISA region, once
// for each ISA namespace.
//
//   acc[r][m] += splat(weight[k][r]) * pixels[offset[k]][m]
//
// The same loop as TokensStrip, but for where an input lies: at an offset of its own, wherever the
// taps of the kernel have moved it, and not in a panel. Nothing is copied for overlapping taps.

template <class V, int R, int MV>
struct ConvStrip {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kWidth = MV * kLanes;
  static constexpr int64_t kWeightsAhead = 8;  // in inputs

  static SPARSEKERN_INLINE void step(Reg acc[R][MV], const float* w, const float* x) {
    Reg pixel[MV];
    SPARSEKERN_UNROLL
    for (int m = 0; m < MV; ++m) pixel[m] = V::load(x + m * kLanes);
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Reg weight = V::splat(w + r);
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = V::fma(weight, pixel[m], acc[r][m]);
    }
  }

  // Outputs [offset, offset + R) of a block row, of which `valid` exist, into rows `to_stride`
  // apart. x: the panel's first pixel. later: rows that will be written next, as many as there are
  // from here on; no hardware foresees the step between them.
  template <bool kSingleColumns>
  static SPARSEKERN_NOINLINE void run(const BlockMatrix& a, int64_t row, int64_t offset,
                                      int64_t valid, const int32_t* offsets, const float* x,
                                      const float* bias, Activation activation, float* to,
                                      int64_t to_stride, const float* later, int64_t later_rows) {
    Reg acc[R][MV];
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Reg start = bias != nullptr && r < valid ? V::splat(bias + r) : V::zero();
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) acc[r][m] = start;
    }
    const int64_t rows = a.rows, cols = kSingleColumns ? 1 : a.cols;
    const int64_t begin = a.offsets[row], end = a.offsets[row + 1];
    const float* w = a.values + begin * cols * rows + offset;
    for (const uint16_t *column = a.columns + begin, *last = a.columns + end; column < last;
         ++column) {
      const int32_t* at = offsets + *column * cols;
      for (int64_t j = 0; j < cols; ++j, w += rows) {
        prefetch(w + kWeightsAhead * rows);
        if (later_rows > 0) {
          SPARSEKERN_UNROLL
          for (int m = 0; m < MV; ++m) __builtin_prefetch(later + m * kLine, 1, 3);
          later += to_stride;
          --later_rows;
        }
        step(acc, w, x + at[j]);
      }
    }
    const Bounds<V> bounds(activation);
    SPARSEKERN_UNROLL
    for (int r = 0; r < R; ++r, to += to_stride) {
      if (r >= valid) break;
      SPARSEKERN_UNROLL
      for (int m = 0; m < MV; ++m) V::store(to + m * kLanes, bounds.apply(acc[r][m]));
    }
  }
};

template <class V, int R, int kMostVectors>
struct ConvBlocks {
  using Vec = V;
  using Matrix = BlockMatrix;
  static constexpr int kVectors = kMostVectors;
  static constexpr int64_t kPanel = kMostVectors * V::kLanes;
  static constexpr int64_t kMostStep = 0;

  template <class T>
  static void run_chunk(const BlockMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        int64_t first_pixel, const ConvRoom& room, const float* bias, T* y) {
    run_vector_panels<ConvBlocks, true>(a, call, band, first_pixel, room, bias, y, kVectors);
  }

  // All outputs of the chunk for MV vectors of pixels from `place` on. y: the image's, of the
  // chunk's first output.
  template <int MV, class T>
  static void run_panel(const BlockMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        const ConvPanel& panel, const ConvRoom& room, const float* bias, T* y) {
    using Strip = ConvStrip<V, R, MV>;
    constexpr int64_t kWidth = Strip::kWidth;
    const float* const x = band.base + panel.place;
    const auto run = [&](int64_t output, float* to, int64_t stride, bool into_y) {
      const auto strip = a.cols == 1 ? &Strip::template run<true> : &Strip::template run<false>;
      const int64_t left = a.out_features - output;
      strip(a, output / a.rows, output % a.rows, left, room.offsets, x,
            bias ? bias + output : nullptr, call.activation, to, stride, to + R * stride,
            into_y ? min64(R, left - R) : 0);
      if (is_more_than_bounds(call.activation)) {
        activate_rows<V>(to, stride, min64(R, left), kWidth, call.activation);
      }
    };
    // Where all lanes are pixels side by side in y, they are stored there at once.
    if constexpr (sizeof(T) == sizeof(float)) {
      if (call.y_pixel == 1 && !band.has_gaps() && panel.place + kWidth <= band.places()) {
        float* const to = y + panel.first_pixel + panel.place;
        for (int64_t output = 0; output < a.out_features; output += R) {
          run(output, to + output * call.y_channel, call.y_channel, true);
        }
        return;
      }
    }
    // The last pixels of an output are loaded as a whole vector.
    alignas(64) float cells[kLine * kWidth + V::kLanes];
    const PanelRuns<kWidth> runs(band, panel);
    for (int64_t line = 0; line < a.out_features; line += kLine) {
      const int64_t outputs = min64(kLine, a.out_features - line);
      for (int64_t n = 0; n < outputs; n += R) run(line + n, cells + n * kWidth, kWidth, false);
      write_pixels<V, kWidth>(cells, outputs, runs, y + line * call.y_channel, call.y_channel,
                              call.y_pixel);
    }
  }
};
