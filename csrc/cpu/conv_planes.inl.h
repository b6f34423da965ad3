// The pixels of a band of output rows as planes (core/conv.h): padded with zeros, taken apart by
// phases, widened to float. Included inside an ISA region, once for each ISA namespace.

// Where kernels find a band's pixels: input (tap, channel) of the weight at offsets[input] from
// `base`, on which the band's first pixel lies.
struct BandPixels {
  const float* base;
  int64_t pitch;  // from a row of the output to the next
  int64_t rows, columns;

  int64_t places() const { return (rows - 1) * pitch + columns; }
  bool has_gaps() const { return rows > 1 && pitch != columns; }
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

// A row of a plane: pixels with zeros around. What whole vectors write beyond it belongs to the
// next row, or lies behind all planes, and is written later.
template <class V, class T>
static SPARSEKERN_INLINE void write_row(const T* x, int64_t step, int64_t begin, int64_t end,
                                        int64_t pitch, float* to) {
  write_zeros<V>(to, begin);
  copy_pixels<V>(x, step, end - begin, to + begin);
  const int64_t written = begin + ceil_div(end - begin, V::kLanes) * V::kLanes;
  write_zeros<V>(to + written, pitch - written);
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

// The pixels [begin, end) of a row of a plane that are those of an image: the others are padding.
struct Inside {
  int64_t begin, end, first;  // first: of the image, that of `begin`

  Inside(const Side& side, int64_t phase, int64_t count) {
    const int64_t missing = max64(0, side.padding - phase);
    begin = min64(count, ceil_div(missing, side.stride));
    first = begin * side.stride + phase - side.padding;
    const int64_t left = side.in - first;
    end = left <= 0 ? begin : min64(count, begin + ceil_div(left, side.stride));
  }
};

// x: of the image's first channel. out_row: the band's first.
template <class V, class T>
static void make_planes(const ConvCallOf<T>& call, const PlaneLayout& layout, const T* x,
                        int64_t out_row, float* planes) {
  const Side &h = call.height, &w = call.width;
  const bool side_by_side = call.x_channel == 1 && call.channels > 1;
  const int64_t together = side_by_side ? call.channels : 1, step = w.stride * call.x_column;
  for (int64_t c = 0; c < call.channels; c += together) {
    float* row = planes + c * layout.channel;
    for (int64_t ph = 0; ph < h.phases(); ++ph) {
      for (int64_t pw = 0; pw < w.phases(); ++pw) {
        const Inside columns(w, w.phase(pw), layout.pitch);
        for (int64_t r = 0; r < layout.rows; ++r, row += layout.pitch) {
          const int64_t x_row = (out_row + r) * h.stride + h.phase(ph) - h.padding;
          const bool inside = x_row >= 0 && x_row < h.in;
          const int64_t begin = columns.begin, end = inside ? columns.end : begin;
          const T* const from = begin == end ? x
                                             : x + c * call.x_channel + x_row * call.x_row +
                                                   columns.first * call.x_column;
          if (!side_by_side) {
            write_row<V>(from, step, begin, end, layout.pitch, row);
            continue;
          }
          for (int64_t i = 0; i < together; ++i) {
            float* const to = row + i * layout.channel;
            for (int64_t q = 0; q < begin; ++q) to[q] = 0.0f;
            for (int64_t q = end; q < layout.pitch; ++q) to[q] = 0.0f;
          }
          copy_channels<V>(from, step, end - begin, together, row + begin, layout.channel);
        }
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
      int64_t offset = layout.offset(call, i, j);
      for (int64_t c = 0; c < call.channels; ++c, offset += layout.channel)
        *next++ = (int32_t)offset;
    }
  }
  for (int64_t k = call.inputs(); k < padded; ++k) {
    *next++ = (int32_t)(call.channels * layout.channel);
  }
}
