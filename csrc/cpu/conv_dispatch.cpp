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

#define SPARSEKERN_CONV_KERNEL(name, format, isa, rows, multiple, panel, together, ...) \
  {#name,      Format::format, Isa::isa, rows,                                          \
   multiple,   panel,          together, SPARSEKERN_SYMBOL_##isa(name),                 \
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

template <class T>
int64_t rows_together(const ConvCallOf<T>& call) {
  const PlaneLayout one(call, 1);
  const int64_t row = call.channels * call.height.phases() * call.width.phases() * one.pitch;
  const int64_t fitting = kPlaneFloats / row - call.height.most_shift();
  return min64(call.height.out, max64(kLeastRows, fitting));
}

// Whether kernels can read x itself: places of pixels are those of the output, offsets of channels
// fit 32 bits, and the weight asks for no input beyond those of x.
template <class Matrix, class T>
bool is_readable(const Matrix& a, const ConvCallOf<T>& call) {
  return std::is_same_v<T, float> && call.is_pointwise() && call.x_column == 1 &&
         call.x_row == call.width.in && a.padded_in_features() == call.inputs() &&
         call.channels * call.x_channel <= INT32_MAX;
}

// How rows and bands are shared. Rows are cut first, which makes no plane twice, unless so few of
// them are left for a thread that its vectors are not filled.
template <class Matrix, class T>
int64_t row_parts(const Matrix& a, const ConvCallOf<T>& call, int64_t images, int64_t threads,
                  bool readable) {
  const PlaneLayout one(call, 1);
  const int64_t all_rows = images * call.height.out;
  // In multiply-adds of vectors; a float of a plane takes about half of one.
  const auto cost = [&](int64_t parts) {
    const int64_t rows = ceil_div(all_rows, parts), together = min64(rows, call.height.out);
    const int64_t vectors = ceil_div((together - 1) * one.pitch + call.width.out, kMostLanes);
    const int64_t bands = ceil_div(rows, together);
    const int64_t made = readable ? 0
                                  : call.channels * call.groups *
                                        (together + call.height.most_shift()) * one.pitch / 2;
    return bands * (vectors * ceil_div(a.stored(), threads / parts) + made);
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
ConvRoom make_room(const Matrix& a, const ConvCallOf<T>& call, const ConvShare& share) {
  const int64_t l1_bytes = l1_data_bytes();
  const int64_t most_rows = min64(share.band_rows, share.row_end - share.row_begin);
  // Where kernels read x itself, planes are made of no more rows than leave a vector unfilled.
  const int64_t unfilling = (kMostLanes - 1) / call.width.out;
  const PlaneLayout layout(call, share.readable ? min64(most_rows, unfilling) : most_rows);
  const bool widened = !std::is_same_v<T, float>;
  const int64_t sizes[] = {
      a.padded_in_features(),
      call.channels * layout.channel + layout.rows * layout.pitch + kPlaneSlack,
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

const ConvKernelInfo* choose_conv_kernel(Format format, int64_t block_rows, int64_t together) {
  for (const ConvKernelInfo& kernel : kTable) {
    if (kernel.isa <= isa_limit() && has_cores(kernel.cores) && kernel.takes(format, block_rows) &&
        together <= kernel.together) {
      return &kernel;
    }
  }
  return nullptr;
}

const ConvKernelInfo* find_conv_kernel(const char* name) { return find_named(kTable, name); }

template <class Matrix>
bool offsets_fit(const Matrix& a, const ConvCallOf<typename Matrix::Value>& call) {
  if (is_readable(a, call)) return true;
  // A product that may be beyond 64 bits.
  const PlaneLayout one(call, 1);
  const double rows = double(rows_together(call) + call.height.most_shift());
  const double plane =
      double(call.height.phases() * call.width.phases()) * rows * double(one.pitch);
  return double(call.channels) * (plane + 32) <= INT32_MAX;  // 32: planes are rounded up
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
  } task{kernel, a, call, rows, 1, 1, call.height.out, is_readable(a, call)};
  threads = useful_threads(a.stored() / call.groups, rows * call.width.out, threads);
  task.row_parts = row_parts(a, call, images, threads, task.readable);
  task.band_parts = threads / task.row_parts;
  if (!task.readable) task.band_rows = rows_together(call);

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
        share.room = make_room(t.a, t.call, share);
        constexpr bool kIsBFloat16 = std::is_same_v<typename Matrix::Value, BFloat16>;
        t.kernel.run(&t.a, &t.call, kIsBFloat16, &share);
      },
      &task);
}

#define SPARSEKERN_INSTANTIATE(Matrix)                                                           \
  template bool offsets_fit(const Matrix&, const ConvCallOf<Matrix::Value>&);                    \
  template void run_conv(const ConvKernelInfo&, const Matrix&, const ConvCallOf<Matrix::Value>&, \
                         int64_t, int64_t, ParallelFor);
SPARSEKERN_INSTANTIATE(BlockMatrixOf<float>)
SPARSEKERN_INSTANTIATE(BlockMatrixOf<BFloat16>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<float>)
SPARSEKERN_INSTANTIATE(NMMatrixOf<BFloat16>)

}  // namespace sparsekern
