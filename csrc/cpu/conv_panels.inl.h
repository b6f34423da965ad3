// How the pixels of a band are cut into panels of vectors. Included inside an ISA region.
//
// Panels of a band have nearly as many vectors each. Of families that store whole vectors the last
// panel ends with the last pixel, unless there are gaps between the band's rows, and what it shares
// with the one before is computed twice. So no load reaches beyond an x that was not copied.

// Calls Family::run_panel for the panels of a band, of so many vectors at most.
template <class Family, bool kStoresVectors, class Matrix, class T>
static void run_vector_panels(const Matrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                              int64_t first_pixel, const ConvRoom& room, const float* bias, T* y,
                              int64_t most) {
  constexpr int64_t L = Family::Vec::kLanes;
  const int64_t places = band.places(), vectors = ceil_div(places, L);
  const bool ends_there = kStoresVectors && !band.has_gaps() && places >= L;
  int64_t panels = ceil_div(vectors, most);
  // A panel of its own for the rest, which then begins with pixels of another.
  if (ends_there && panels == 1 && places % L != 0) panels = min64(2, vectors);
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t begin = vectors * p / panels, count = vectors * (p + 1) / panels - begin;
    const int64_t last = places - count * L;
    const ConvPanel panel{ends_there ? min64(begin * L, last) : begin * L, first_pixel};
    with_vectors<Family::kVectors>(count, [&](auto vectors) {
      Family::template run_panel<decltype(vectors)::value>(a, call, band, panel, room, bias, y);
    });
  }
}
