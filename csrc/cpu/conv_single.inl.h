// Convolutions with weights that stand alone, and n:m: vectors of pixels, one output at a time, as
// single.inl.h says. Included inside an ISA region.
//
// Their multiply-adds want each input in L1, so a K-tile of a panel of pixels is copied there,
// which takes one load and one store for as many multiply-adds as outputs have a weight for it.

// kCopies: sums of each output that take turns, as many for all panels, since the order of a sum
// must not depend on them.
template <class V, int kMostVectors, int kCopies>
struct ConvSingleFamily {
  using Vec = V;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kVectors = kMostVectors;
  static constexpr int64_t kPanel = kMostVectors * kLanes;
  static constexpr int64_t kMostStep = 0;

  template <class Family, class Matrix, class T>
  static void run_panels(const Matrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                         int64_t first_pixel, const ConvRoom& room, const float* bias, T* y) {
    const int64_t most = single_panel(kPanel, density_of(a)) / kLanes;
    run_vector_panels<Family, false>(a, call, band, first_pixel, room, bias, y, most);
  }

  template <class Weights, class T>
  static void run(const typename Weights::Matrix& a, const ConvCallOf<T>& call,
                  const BandPixels& band, const ConvPanel& panel, const ConvRoom& room,
                  const float* bias, T* y) {
    constexpr int64_t kWidth = Weights::Sums::kWidth;
    float* const cells = room.own;
    int32_t* const cursors = reinterpret_cast<int32_t*>(cells + kMostCells);
    float* const copied = cells + kMostCells + kMostCursors;
    const float* const x = band.base + panel.place;
    const PanelRuns<kWidth> runs(band, panel);
    const int64_t pixels = min64(kWidth, band.places() - panel.place);
    const int64_t quantum = a.input_quantum(), inputs = call.inputs();
    // Where several sums end with the tile, its depth is the same on every CPU.
    const int64_t tile = conv_tile_floats(kCopies > 1 ? 32 * 1024 : room.l1_bytes);
    const int64_t depth = max64(1, tile / (kPanel * quantum)) * quantum;
    const auto add = [&](int64_t begin, int64_t end, int64_t input_begin, int64_t input_end) {
      float* to = copied;
      for (int64_t k = input_begin; k < min64(inputs, input_end); ++k, to += kWidth) {
        const float* const from = x + room.offsets[k];
        if (pixels == kWidth) {
          SPARSEKERN_UNROLL
          for (int64_t i = 0; i < kWidth; i += kLanes) V::store(to + i, V::load(from + i));
        } else {
          // The last of an image that is read where it is: nothing beyond it may be.
          for (int64_t i = 0; i < kWidth; i += kLanes) {
            V::store(to + i, V::load_first(from + i, (int)max64(0, min64(kLanes, pixels - i))));
          }
        }
      }
      for (int64_t i = (input_end - input_begin) * kWidth; to - copied < i; ++to) *to = 0.0f;
      const SingleTile tile{copied - input_begin * kWidth, input_begin, input_end};
      Weights::add(a, begin, end, tile, cursors, cells);
    };
    const auto finish = [&](int64_t begin, int64_t end) {
      float* cell = cells;
      const Bounds<V> bounds(call.activation);
      for (int64_t n = begin; n < end; ++n) {
        const typename V::Reg shift = bias ? V::splat(bias + n) : V::zero();
        for (int64_t i = 0; i < kWidth; i += kLanes, cell += kLanes) {
          V::store(cell, bounds.apply(V::add(V::load(cell), shift)));
        }
      }
      if (is_more_than_bounds(call.activation)) {
        activate_rows<V>(cells, kWidth, end - begin, kWidth, call.activation);
      }
      write_pixels<V, kWidth>(cells, end - begin, runs, y + begin * call.y_channel, call.y_channel,
                              call.y_pixel);
    };
    Share all{};
    all.row_end = a.bands();
    for_each_chunk<Weights, kWidth, kLine>(a, all, depth, cursors, add, finish);
  }
};

template <class V, int kMostVectors, int kCopies>
struct ConvSingleBlocks : ConvSingleFamily<V, kMostVectors, kCopies> {
  using Matrix = BlockMatrix;

  template <class T>
  static void run_chunk(const BlockMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        int64_t first_pixel, const ConvRoom& room, const float* bias, T* y) {
    ConvSingleBlocks::template run_panels<ConvSingleBlocks>(a, call, band, first_pixel, room, bias,
                                                            y);
  }

  template <int MV, class T>
  static void run_panel(const BlockMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        const ConvPanel& panel, const ConvRoom& room, const float* bias, T* y) {
    using Weights = BlockWeights<V, MV, kCopies, false>;
    ConvSingleBlocks::template run<Weights>(a, call, band, panel, room, bias, y);
  }
};

template <class V, int kMostVectors, int kCopies>
struct ConvNM : ConvSingleFamily<V, kMostVectors, kCopies> {
  using Matrix = NMMatrix;

  template <class T>
  static void run_chunk(const NMMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        int64_t first_pixel, const ConvRoom& room, const float* bias, T* y) {
    ConvNM::template run_panels<ConvNM>(a, call, band, first_pixel, room, bias, y);
  }

  template <int MV, class T>
  static void run_panel(const NMMatrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                        const ConvPanel& panel, const ConvRoom& room, const float* bias, T* y) {
    with_pattern(a, [&](auto pattern) {
      using P = decltype(pattern);
      using Weights = NMWeights<V, MV, kCopies, P::kN, P::kM, P::kBits>;
      ConvNM::template run<Weights>(a, call, band, panel, room, bias, y);
    });
  }
};
