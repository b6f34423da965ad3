// The loop nest around the kernels of convolutions. Included inside an ISA region, once for each
// ISA namespace.
//
//   for a band of output rows of an image, and a group of channels:
//     its pixels: where they are in x, or as planes
//     for a chunk of bands of outputs whose weights stay in L2 (widened, if they are bfloat16):
//       Family::run_chunk, for one panel of pixels after the other

static void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
}

// Bands [begin, end) of a weight, of so many outputs, as a weight of its own.
static BlockMatrix part_of(const BlockMatrix& a, int64_t begin, int64_t, int64_t outputs,
                           const ConvRoom&) {
  return {a.values, a.columns, a.offsets + begin, outputs, a.in_features,
          a.rows,   a.cols,    a.density};
}
static BlockMatrix part_of(const BlockMatrixOf<BFloat16>& a, int64_t begin, int64_t end,
                           int64_t outputs, const ConvRoom& room) {
  const int64_t first = a.offsets[begin], before = a.stored_before(begin);
  widen(a.values + before, a.stored_before(end) - before, room.weights);
  for (int64_t row = begin; row <= end; ++row) {
    room.block_offsets[row - begin] = a.offsets[row] - (int32_t)first;
  }
  return {room.weights, a.columns + first, room.block_offsets, outputs, a.in_features, a.rows,
          a.cols,       a.density};
}
template <class T>
static NMMatrix part_of(const NMMatrixOf<T>& a, int64_t begin, int64_t end, int64_t outputs,
                        const ConvRoom& room) {
  const int64_t before = a.stored_before(begin);
  const float* values;
  if constexpr (sizeof(T) == sizeof(float)) {
    values = a.values + before;
  } else {
    widen(a.values + before, a.stored_before(end) - before, room.weights);
    values = room.weights;
  }
  return {values, a.positions + before * a.position_bits() / 8, outputs, a.in_features, a.n, a.m};
}

static const float* bias_of(const float* bias, int64_t, const ConvRoom&) { return bias; }
static const float* bias_of(const BFloat16* bias, int64_t outputs, const ConvRoom& room) {
  if (bias == nullptr) return nullptr;
  widen(bias, outputs, room.bias);
  return room.bias;
}

// First band beyond those from `begin` on, one at least, that fill a chunk.
template <class Matrix>
static int64_t conv_chunk_end(const Matrix& a, int64_t begin, int64_t bands_end) {
  int64_t end = begin + 1;
  while (end < bands_end &&
         a.stored_before(end + 1) - a.stored_before(begin) <= kConvChunkWeights) {
    ++end;
  }
  return end;
}

// One group of channels of one band of rows.
template <class Family, class Matrix, class T>
static void run_band(const Matrix& a, const ConvCallOf<T>& call, const BandPixels& band,
                     int64_t first_pixel, int64_t band_begin, int64_t band_end, T* y,
                     const ConvRoom& room) {
  int64_t end;
  for (int64_t begin = band_begin; begin < band_end; begin = end) {
    end = conv_chunk_end(a, begin, band_end);
    const int64_t output = begin * a.band_outputs();
    const int64_t outputs = min64(end * a.band_outputs(), a.out_features) - output;
    const auto chunk = part_of(a, begin, end, outputs, room);
    const float* bias = bias_of(call.bias ? call.bias + output : nullptr, outputs, room);
    Family::run_chunk(chunk, call, band, first_pixel, room, bias, y + output * call.y_channel);
  }
}

template <class Family, class Matrix, class T>
static void run_conv(const Matrix& a, const ConvCallOf<T>& call, const ConvShare& share) {
  using V = typename Family::Vec;
  const ConvRoom& room = share.room;
  const int64_t group_bands = a.bands() / call.groups;
  const Side& h = call.height;
  int64_t next;
  for (int64_t row = share.row_begin; row < share.row_end; row = next) {
    const int64_t image = row / h.out, first_row = row % h.out;
    const int64_t rows = min64(min64(share.band_rows, h.out - first_row), share.row_end - row);
    next = row + rows;
    const PlaneLayout layout(call, rows, Family::kMostStep);
    const T* const x = call.x + image * call.x_image;
    T* const y = call.y + image * call.y_image;
    const bool readable =
        share.readable && (Family::kMostStep > 0 || rows * call.width.out >= V::kLanes);
    for (int64_t g = share.band_begin / group_bands; g * group_bands < share.band_end; ++g) {
      const T* const channels = x + g * call.channels * call.x_channel;
      BandPixels band{room.planes, layout.height.step() * layout.pitch, layout.width.step(), rows,
                      call.width.out};
      if (readable) {
        const int64_t pitch = h.stride * call.x_row;
        if constexpr (sizeof(T) == sizeof(float)) band.base = channels + first_row * pitch;
        band.pitch = pitch;
        band.step = call.width.stride * call.x_column;
        make_offsets_in_image(call, room.offsets);
      } else {
        make_planes<V>(call, layout, channels, first_row, room.planes);
        make_offsets(call, layout, a.padded_in_features(), room.offsets);
        float* const behind = room.planes + call.channels * layout.channel;
        write_zeros<V>(behind, layout.rows * layout.pitch + kPlaneSlack);
      }
      run_band<Family>(a, call, band, first_row * call.width.out,
                       max64(share.band_begin, g * group_bands),
                       min64(share.band_end, (g + 1) * group_bands), y, room);
    }
  }
}

template <class>
struct WeightsOf;
template <template <class> class MatrixOf>
struct WeightsOf<MatrixOf<float>> {
  template <class T>
  using type = MatrixOf<T>;
};

template <class Family, class Matrix>
static void run_conv_of(const void* weight, const void* call, bool is_bfloat16,
                        const ConvShare& share) {
  const auto run = [&](auto number) {
    using T = decltype(number);
    using Weights = typename WeightsOf<Matrix>::template type<T>;
    run_conv<Family>(*static_cast<const Weights*>(weight), *static_cast<const ConvCallOf<T>*>(call),
                     share);
  };
  if (is_bfloat16) {
    run(BFloat16());
  } else {
    run(0.0f);
  }
}
