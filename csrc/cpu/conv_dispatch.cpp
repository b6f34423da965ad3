#include "cpu/conv_dispatch.h"

#include <type_traits>

#include "cpu/table.h"

#define SPARSEKERN_CONV_KERNEL(name, ...)                                       \
  extern "C" void sparsekern_##name(const void* weight, const void* call, bool, \
                                    const sparsekern::ConvShare*);
#include "cpu/conv_kernels.inc"
#undef SPARSEKERN_CONV_KERNEL

namespace sparsekern {
namespace {

#define SPARSEKERN_CONV_KERNEL(name, format, isa, rows, multiple, panel, step, together, ...) \
  {#name,      Format::format, Isa::isa,                                                      \
   rows,       multiple,       panel,                                                         \
   step,       together,       SPARSEKERN_SYMBOL_##isa(name),                                 \
   __VA_ARGS__},
constexpr ConvKernelInfo kTable[] = {
#include "cpu/conv_kernels.inc"
};
#undef SPARSEKERN_CONV_KERNEL

// Floats of planes that are made at a time: most of an L2 of 1 MiB, unless so few rows fit that
// most of what is copied is what taps reach beyond them.
constexpr int64_t kPlaneFloats = 160 * 1024;
constexpr int64_t kLeastRows = 8;
constexpr int64_t kMostLanes = 16;  // of a vector
// Of an image whose pixels are read one by one where they are.
constexpr int64_t kLeastPixels = 64;

template <class T>
int64_t rows_together(const ConvKernelInfo& kernel, const ConvCallOf<T>& call) {
  const PlaneLayout one(call, 1, kernel.most_step);
  const int64_t row = call.channels * one.phases() * one.pitch;
  const int64_t fitting = (kPlaneFloats / row - one.rows) / one.height.step() + 1;
  return min64(call.height.out, max64(kLeastRows, fitting));
}

// Whether the pixels of an image lie side by side as those of the output do, so that vectors of
// them can be read where they are.
template <class T>
bool is_one_line(const ConvCallOf<T>& call) {
  return std::is_same_v<T, float> && call.is_pointwise() && call.x_column == 1 &&
         call.x_row == call.width.in;
}

// Whether kernels can read x itself: no padding surrounds it, offsets fit 32 bits, and the weight
// asks for no input beyond those of x. Where pixels are read singly and their channels lie side by
// side, each of them is a line of its own for every input, and those of a panel (which has as many
// as a vector there, conv_outputs.inl.h) have to fit half of what a K-tile may take of L1; with
// more channels, panels of a product are faster.
template <class T>
bool is_readable(const ConvKernelInfo& kernel, int64_t inputs, const ConvCallOf<T>& call) {
  const Side &h = call.height, &w = call.width;
  const int64_t reach = call.channels * call.x_channel + h.in * call.x_row + w.in * call.x_column;
  if (!std::is_same_v<T, float> || h.padding != 0 || w.padding != 0 || inputs != call.inputs() ||
      reach > INT32_MAX) {
    return false;
  }
  if (kernel.most_step == 0) return is_one_line(call);
  return call.x_column == 1 || 2 * call.channels * kMostLanes <= conv_tile_floats(l1_data_bytes());
}

// A convolution of pixels alone, with their channels side by side, is a product. Those of images of
// one pixel lie so in either memory format, as far apart as the images.
template <class T>
bool is_product(const ConvCallOf<T>& call, int64_t images) {
  const Side &h = call.height, &w = call.width;
  const bool is_one_pixel = h.in == 1 && w.in == 1;
  const bool is_even =
      call.x_row == w.in * call.x_column && (call.x_image == h.in * call.x_row || images == 1);
  return call.groups == 1 && call.is_pointwise() && call.x_channel == 1 && call.y_channel == 1 &&
         (is_one_pixel || is_even);
}

// How rows and bands are shared. Rows are cut first, which makes no plane twice, unless so few of
// them are left for a thread that its vectors are not filled.
template <class Matrix, class T>
int64_t row_parts(const ConvKernelInfo& kernel, const Matrix& a, const ConvCallOf<T>& call,
                  int64_t images, int64_t threads, bool readable) {
  const PlaneLayout one(call, 1, kernel.most_step);
  const int64_t all_rows = images * call.height.out;
  // In multiply-adds of vectors; a float of a plane takes about half of one.
  const auto cost = [&](int64_t parts) {
    const int64_t rows = ceil_div(all_rows, parts), together = min64(rows, call.height.out);
    const int64_t places = kernel.most_step > 0 ? together * call.width.out
                                                : (together - 1) * one.pitch + call.width.out;
    const int64_t bands = ceil_div(rows, together);
    const int64_t plane_rows = one.height.length(together) * one.phases();
    const int64_t made = readable ? 0 : call.channels * call.groups * plane_rows * one.pitch / 2;
    return bands * (ceil_div(places, kMostLanes) * ceil_div(a.stored(), threads / parts) + made);
  };
  int64_t best = 1;
  for (int64_t parts = 2; parts <= min64(threads, all_rows); ++parts) {
    if (threads % parts == 0 && cost(parts) <= cost(best)) best = parts;
  }
  return best;
}

// Weights of a chunk, at most.
template <class Matrix>
int64_t most_in_chunk(const Matrix& a, const ConvShare& share) {
  int64_t most = kConvChunkWeights;
  for (int64_t band = share.band_begin; band < share.band_end; ++band) {
    most = max64(most, a.stored_before(band + 1) - a.stored_before(band));
  }
  return most;
}

// What a share needs of this thread's scratch.
template <class Matrix, class T>
ConvRoom make_room(const ConvKernelInfo& kernel, const Matrix& a, const ConvCallOf<T>& call,
                   const ConvShare& share) {
  const int64_t l1_bytes = l1_data_bytes();
  int64_t plane_rows = min64(share.band_rows, share.row_end - share.row_begin);
  // Where kernels read x itself, planes are made of no more rows than leave a vector unfilled.
  if (share.readable) plane_rows = min64(plane_rows, (kMostLanes - 1) / call.width.out);
  const PlaneLayout layout(call, max64(1, plane_rows), kernel.most_step);
  const bool made = !share.readable || (kernel.most_step == 0 && plane_rows > 0);
  const bool widened = !std::is_same_v<T, float>;
  const int64_t sizes[] = {
      a.padded_in_features(),
      made ? call.channels * layout.channel + layout.rows * layout.pitch + kPlaneSlack : 0,
      kMostCells + kMostCursors +
          max64(conv_tile_floats(l1_bytes), a.input_quantum() * kMostConvPanel),
      widened ? most_in_chunk(a, share) : 0,
      widened ? a.out_features : 0,
      widened ? a.bands() + 1 : 0,
  };
  constexpr int kParts = sizeof(sizes) / sizeof(sizes[0]);
  int64_t begin[kParts + 1] = {};
  for (int i = 0; i < kParts; ++i) begin[i + 1] = begin[i] + ceil_div(sizes[i], 16) * 16;
  float* const scratch = thread_scratch(begin[kParts]);
  return {reinterpret_cast<int32_t*>(scratch),
          scratch + begin[1],
          scratch + begin[2],
          scratch + begin[3],
          scratch + begin[4],
          reinterpret_cast<int32_t*>(scratch + begin[5]),
          l1_bytes};
}

}  // namespace

const ConvKernelInfo* conv_kernel_table(int* count) {
  *count = sizeof(kTable) / sizeof(kTable[0]);
  return kTable;
}

template <class T>
ConvChoice choose_conv(Format format, int64_t block_rows, int64_t inputs, const ConvCallOf<T>& call,
                       int64_t images) {
  const int64_t pixels = call.height.out * call.width.out;
  const int64_t together = is_one_line(call) ? pixels : 1;
  ConvChoice choice;
  for (const ConvKernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && has_cores(kernel.cores) && kernel.takes(format, block_rows) &&
        together <= kernel.together) {
      choice.conv = &kernel;
      break;
    }
  }
  // Pixels read where they are need no panel, which few outputs would not be worth; but a few
  // pixels have kernels of their own.
  const bool in_place = choice.conv != nullptr && choice.conv->most_step > 0 &&
                        pixels >= kLeastPixels && is_readable(*choice.conv, inputs, call);
  if (is_product(call, images) && !in_place) {
    const Numbers values = std::is_same_v<T, float> ? Numbers::kFloat32 : Numbers::kBFloat16;
    choice.product = choose_kernel(format, values, block_rows, images * pixels);
  }
  return choice;
}

const ConvKernelInfo* find_conv_kernel(const char* name) { return find_named(kTable, name); }

template <class Matrix>
bool offsets_fit(const ConvKernelInfo& kernel, const Matrix& a,
                 const ConvCallOf<typename Matrix::Value>& call) {
  if (is_readable(kernel, a.padded_in_features(), call)) return true;
  // A product that may be beyond 64 bits.
  const PlaneLayout one(call, 1, kernel.most_step);
  const double rows = double(one.height.length(rows_together(kernel, call)));
  const double plane = double(one.phases()) * rows * double(one.pitch);
  return double(call.channels) * (plane + 48) <= INT32_MAX;  // 48: planes are rounded up
}

template <class Matrix>
void run_conv(const ConvKernelInfo& kernel, const Matrix& a,
              const ConvCallOf<typename Matrix::Value>& call, int64_t images, int64_t threads,
              ParallelFor parallel_for) {
  const int64_t rows = images * call.height.out;
  if (rows == 0 || call.width.out == 0) return;
  struct Task {
    const ConvKernelInfo& kernel;
    const Matrix& a;
    const ConvCallOf<typename Matrix::Value>& call;
    int64_t rows, row_parts, band_parts, band_rows;
    bool readable;
  } task{kernel,
         a,
         call,
         rows,
         1,
         1,
         call.height.out,
         is_readable(kernel, a.padded_in_features(), call)};
  threads = useful_threads(a.stored() / call.groups, rows * call.width.out, threads);
  task.row_parts = row_parts(kernel, a, call, images, threads, task.readable);
  task.band_parts = threads / task.row_parts;
  if (!task.readable) task.band_rows = rows_together(kernel, call);

  parallel_for(
      task.row_parts * task.band_parts,
      [](int64_t part, void* context) {
        const Task& t = *static_cast<const Task*>(context);
        const int64_t row_part = part % t.row_parts, band_part = part / t.row_parts;
        ConvShare share{};
        share.row_begin = t.rows * row_part / t.row_parts;
        share.row_end = t.rows * (row_part + 1) / t.row_parts;
        share.band_begin = band_boundary(t.a, band_part, t.band_parts);
        share.band_end = band_part + 1 == t.band_parts
                             ? t.a.bands()
                             : band_boundary(t.a, band_part + 1, t.band_parts);
        share.band_rows = t.band_rows;
        share.readable = t.readable;
        if (share.band_begin >= share.band_end || share.row_begin >= share.row_end) return;
        share.room = make_room(t.kernel, t.a, t.call, share);
        constexpr bool kIsBFloat16 = std::is_same_v<typename Matrix::Value, BFloat16>;
        t.kernel.run(&t.a, &t.call, kIsBFloat16, &share);
      },
      &task);
}

#define SPARSEKERN_INSTANTIATE(Matrix)                                                           \
  template bool offsets_fit(const ConvKernelInfo&, const Matrix&,                                \
                            const ConvCallOf<Matrix::Value>&);                                   \
  template void run_conv(const ConvKernelInfo&, const Matrix&, const ConvCallOf<Matrix::Value>&, \
                         int64_t, int64_t, ParallelFor);
template ConvChoice choose_conv(Format, int64_t, int64_t, const ConvCallOf<float>&, int64_t);
template ConvChoice choose_conv(Format, int64_t, int64_t, const ConvCallOf<BFloat16>&, int64_t);
SPARSEKERN_INSTANTIATE(BlockMatrixOf<float>)
SPARSEKERN_INSTANTIATE(BlockMatrixOf<BFloat16>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<float>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<BFloat16>)

}  // namespace sparsekern
