// The pixels of a band of output rows as planes (core/conv.h): padded with zeros, taken apart by
// phases, widened to float. Included inside an ISA region, once for each ISA namespace.

// Where kernels find a band's pixels: input (tap, channel) of the weight at offsets[input] from
// `base`, on which the band's first pixel lies. A pixel of the output is a place,
// row * pitch + column * step; what lies between its rows is computed and not written, by kernels
// that hold vectors of places.
struct BandPixels {
  const float* base;
  int64_t pitch, step;  // from a row, and from a pixel of the output to the next
  int64_t rows, columns;

  int64_t places() const { return (rows - 1) * pitch + columns; }
  bool has_gaps() const { return rows > 1 && pitch != columns * step; }
};

// `count` pixels of a row, `step` apart. Whole vectors are written, zeros behind the pixels.
template <class V>
static SPARSEKERN_INLINE void copy_pixels(const float* x, int64_t step, int64_t count, float* to) {
  constexpr int L = V::kLanes;
  int64_t i = 0;
  if (step == 1) {
    for (; i + L <= count; i += L) V::store(to + i, V::load(x + i));
    if (i < count) V::store(to + i, V::load_first(x + i, (int)(count - i)));
  } else if (step == 2) {
    for (; i + L <= count; i += L) V::store(to + i, V::load_even(x + 2 * i, L));
    if (i < count) V::store(to + i, V::load_even(x + 2 * i, (int)(count - i)));
  } else {
    for (; i < count; ++i) to[i] = x[i * step];
    for (; i % L != 0; ++i) to[i] = 0.0f;
  }
}
template <class V>
static void copy_pixels(const BFloat16* x, int64_t step, int64_t count, float* to) {
  int64_t i = 0;
  // Known to the compiler, the usual step becomes vectors.
  if (step == 1) {
    for (; i < count; ++i) to[i] = widened(x[i]);
  } else {
    for (; i < count; ++i) to[i] = widened(x[i * step]);
  }
  for (; i % V::kLanes != 0; ++i) to[i] = 0.0f;
}

// By whole vectors.
template <class V>
static SPARSEKERN_INLINE void write_zeros(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += V::kLanes) V::store(to + i, V::zero());
}

// Rows of pixels that lie x_row apart, with zeros between the rows of the plane. Whole vectors are
// written, which reach into the next row.
template <class V, class T>
static SPARSEKERN_NOINLINE void copy_rows(const T* x, int64_t x_row, int64_t step, int64_t rows,
                                          int64_t count, int64_t pitch, float* to) {
  const int64_t written = ceil_div(count, V::kLanes) * V::kLanes;
  for (int64_t r = 0; r < rows; ++r, x += x_row, to += pitch) {
    copy_pixels<V>(x, step, count, to);
    write_zeros<V>(to + written, pitch - written);
  }
}

// Channels that lie side by side, by squares of them and of pixels.
template <class V>
static void copy_channels(const float* x, int64_t step, int64_t count, int64_t channels, float* to,
                          int64_t to_channel) {
  constexpr int L = V::kLanes;
  for (int64_t p = 0; p < count; p += L) {
    const int pixels = (int)min64(L, count - p);
    const float* from = x + p * step;
    int64_t c = 0;
    for (; c + L <= channels; c += L) {
      typename V::Reg column[L];
      V::load_transposed(from + c, step, pixels, column);
      float* row = to + c * to_channel + p;
      if (pixels == L) {
        SPARSEKERN_UNROLL
        for (int i = 0; i < L; ++i) V::store(row + i * to_channel, column[i]);
      } else {
        SPARSEKERN_UNROLL
        for (int i = 0; i < L; ++i) V::store_first(row + i * to_channel, column[i], pixels);
      }
    }
    for (; c < channels; ++c) {
      for (int i = 0; i < pixels; ++i) to[c * to_channel + p + i] = from[i * step + c];
    }
  }
}

template <class V>
static void copy_channels(const BFloat16* x, int64_t step, int64_t count, int64_t channels,
                          float* to, int64_t to_channel) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) to[c * to_channel + i] = widened(x[i * step + c]);
  }
}

// The places [begin, end) of a side of a plane that are pixels of the image: the others are
// padding.
struct Inside {
  int64_t begin, end, first;  // first: of the image, that of `begin`

  // place: the first of `count` of them.
  Inside(const PlaneSide& plane, int64_t phase, int64_t place, int64_t count) {
    const int64_t step = plane.image_step();
    const int64_t origin = place * step + phase - plane.side.padding;
    begin = min64(count, ceil_div(max64(0, -origin), step));
    first = origin + begin * step;
    const int64_t left = plane.side.in - first;
    end = left <= 0 ? begin : min64(count, begin + ceil_div(left, step));
  }
};

// One phase of one channel, whose pixels begin at x. What is written beyond its rows belongs to the
// next phase, to nothing, or, zeros as many as its rows begin with, to the first phase of the next
// channel, whose rows begin with as many or more.
template <class V, class T>
static void make_plane(const ConvCallOf<T>& call, const PlaneLayout& layout, const Inside& rows,
                       const Inside& columns, const T* x, float* plane) {
  const int64_t pitch = layout.pitch, first = rows.begin * pitch + columns.begin;
  const int64_t count = columns.end - columns.begin, behind = rows.end * pitch;
  write_zeros<V>(plane, count > 0 ? first : layout.rows * pitch);
  if (count == 0) return;
  copy_rows<V>(x, layout.height.image_step() * call.x_row,
               layout.width.image_step() * call.x_column, rows.end - rows.begin, count, pitch,
               plane + first);
  write_zeros<V>(plane + behind, layout.rows * pitch - behind);
}

// The same of all channels, which lie side by side.
template <class V, class T>
static void make_planes_of_channels(const ConvCallOf<T>& call, const PlaneLayout& layout,
                                    const Inside& rows, const Inside& columns, const T* x,
                                    float* plane) {
  const int64_t pitch = layout.pitch, step = layout.width.image_step() * call.x_column;
  const int64_t x_row = layout.height.image_step() * call.x_row;
  for (int64_t r = 0; r < layout.rows; ++r, plane += pitch) {
    const bool inside = r >= rows.begin && r < rows.end;
    const int64_t begin = columns.begin, end = inside ? columns.end : begin;
    for (int64_t c = 0; c < call.channels; ++c) {
      float* const to = plane + c * layout.channel;
      for (int64_t q = 0; q < begin; ++q) to[q] = 0.0f;
      for (int64_t q = end; q < pitch; ++q) to[q] = 0.0f;
    }
    if (begin == end) continue;
    copy_channels<V>(x + (r - rows.begin) * x_row, step, end - begin, call.channels, plane + begin,
                     layout.channel);
  }
}

// x: of the image's first channel. out_row: the band's first.
template <class V, class T>
static void make_planes(const ConvCallOf<T>& call, const PlaneLayout& layout, const T* x,
                        int64_t out_row, float* planes) {
  const PlaneSide &h = layout.height, &w = layout.width;
  const bool side_by_side = call.x_channel == 1 && call.channels > 1;
  float* plane = planes;
  for (int64_t ph = 0; ph < h.phases(); ++ph) {
    const Inside rows(h, h.phase(ph), out_row * h.step(), layout.rows);
    for (int64_t pw = 0; pw < w.phases(); ++pw, plane += layout.rows * layout.pitch) {
      const Inside columns(w, w.phase(pw), 0, layout.pitch);
      const bool empty = rows.begin == rows.end || columns.begin == columns.end;
      const T* const from = empty ? x : x + rows.first * call.x_row + columns.first * call.x_column;
      if (side_by_side) {
        make_planes_of_channels<V>(call, layout, rows, columns, from, plane);
        continue;
      }
      for (int64_t c = 0; c < call.channels; ++c) {
        make_plane<V>(call, layout, rows, columns, from + c * call.x_channel,
                      plane + c * layout.channel);
      }
    }
  }
}

// Of all inputs of the weight, in its order: taps by rows, channels of a tap. Those that the weight
// is padded with find zeros behind the last channel.
template <class T>
static void make_offsets(const ConvCallOf<T>& call, const PlaneLayout& layout, int64_t padded,
                         int32_t* offsets) {
  int32_t* next = offsets;
  for (int64_t i = 0; i < call.height.kernel; ++i) {
    for (int64_t j = 0; j < call.width.kernel; ++j) {
      int64_t offset = layout.offset(i, j);
      for (int64_t c = 0; c < call.channels; ++c, offset += layout.channel)
        *next++ = (int32_t)offset;
    }
  }
  for (int64_t k = call.inputs(); k < padded; ++k) {
    *next++ = (int32_t)(call.channels * layout.channel);
  }
}

// The same where kernels read the image itself.
template <class T>
static void make_offsets_in_image(const ConvCallOf<T>& call, int32_t* offsets) {
  const Side &h = call.height, &w = call.width;
  for (int64_t i = 0; i < h.kernel; ++i) {
    for (int64_t j = 0; j < w.kernel; ++j) {
      int64_t offset = i * h.dilation * call.x_row + j * w.dilation * call.x_column;
      for (int64_t c = 0; c < call.channels; ++c, offset += call.x_channel) {
        *offsets++ = (int32_t)offset;
      }
    }
  }
}
