// How the sums of a panel of pixels get into y. Included inside an ISA region, once for each ISA
// namespace.

// Vectors of pixels that are computed together: from a place of the band's planes on.
struct ConvPanel {
  int64_t place;
  int64_t first_pixel;  // of the output image, that of place 0
};

// Pixels of a panel that lie in one row of the output.
struct PixelRun {
  int32_t lane, count;
  int64_t pixel;  // of the output image
};

// Those of a panel of kLanes pixels, or fewer.
template <int64_t kLanes>
struct PanelRuns {
  PixelRun runs[kLanes];
  int count = 0;

  PanelRuns(const BandPixels& band, const ConvPanel& panel, int64_t lanes = kLanes) {
    const int64_t end = min64(panel.place + lanes, band.places());
    if (!band.has_gaps()) {
      add(panel, panel.place, end, panel.place);
      return;
    }
    for (int64_t p = panel.place; p < end;) {
      const int64_t row = p / band.pitch, column = p - row * band.pitch;
      const int64_t stop = min64(end, row * band.pitch + band.columns);
      if (p < stop) add(panel, p, stop, row * band.columns + column);
      p = (row + 1) * band.pitch;
    }
  }

 private:
  void add(const ConvPanel& panel, int64_t begin, int64_t end, int64_t pixel) {
    runs[count++] = {(int32_t)(begin - panel.place), (int32_t)(end - begin),
                     panel.first_pixel + pixel};
  }
};

// `cells` [outputs][kWidth] into y, of the first of the outputs.
template <class V, int64_t kWidth, class T>
static SPARSEKERN_NOINLINE void write_pixels(const float* cells, int64_t outputs,
                                             const PanelRuns<kWidth>& runs, T* y, int64_t y_channel,
                                             int64_t y_pixel) {
  constexpr int L = V::kLanes;
  for (int i = 0; i < runs.count; ++i) {
    const PixelRun run = runs.runs[i];
    const float* from = cells + run.lane;
    T* to = y + run.pixel * y_pixel;
    if (y_pixel == 1) {
      for (int64_t n = 0; n < outputs; ++n, from += kWidth, to += y_channel) {
        int64_t p = 0;
        for (; p + L <= run.count; p += L) store_all<V>(to + p, V::load(from + p));
        if (p < run.count) store_first<V>(to + p, V::load(from + p), (int)(run.count - p));
      }
    } else {
      for (int64_t p = 0; p < run.count; p += L) {
        for (int64_t n = 0; n < outputs; n += L) {
          const int some = (int)min64(L, outputs - n);
          typename V::Reg row[L];
          V::load_transposed(from + n * kWidth + p, kWidth, some, row);
          T* line = to + p * y_pixel + n;
          SPARSEKERN_UNROLL
          for (int t = 0; t < L; ++t, line += y_pixel) {
            if (t >= run.count - p) break;
            if (some == L) {
              store_all<V>(line, row[t]);
            } else {
              store_first<V>(line, row[t], some);
            }
          }
        }
      }
    }
  }
}
