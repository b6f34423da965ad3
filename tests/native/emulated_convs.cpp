// Runs every kernel of convolutions against float64, as emulated_kernels.cpp does those of
// products.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/conv_dispatch.h"
#include "emulated_expected.h"

namespace {

// How the numbers of an image lie: by rows, with the channels of a pixel side by side, either with
// gaps wherever there can be some, or with columns outermost.
enum class Form { kRows, kChannelsLast, kRowsWithGaps, kChannelsLastWithGaps, kColumns };
constexpr Form kForms[] = {Form::kRows, Form::kChannelsLast, Form::kRowsWithGaps,
                           Form::kChannelsLastWithGaps, Form::kColumns};

struct Strides {
  int64_t image, channel, row, column;

  Strides(Form form, int64_t channels, int64_t rows, int64_t columns) {
    if (form == Form::kChannelsLast || form == Form::kChannelsLastWithGaps) {
      const int64_t gap = form == Form::kChannelsLast ? 0 : 3;
      channel = 1;
      column = channels + gap;
      row = columns * column + gap;
      image = rows * row + gap;
    } else if (form == Form::kColumns) {
      row = 1;
      column = rows;
      channel = columns * column;
      image = channels * channel;
    } else {
      const bool has_gaps = form == Form::kRowsWithGaps;
      column = has_gaps ? 2 : 1;
      row = columns * column + (has_gaps ? 1 : 0);
      channel = rows * row + (has_gaps ? 5 : 0);
      image = channels * channel + (has_gaps ? 7 : 0);
    }
  }
};

struct ConvCase {
  int64_t rows, cols;                 // of blocks, or n and m
  int64_t outputs, channels, groups;  // channels: of a group
  Side height, width;                 // `out` follows from the others
  int64_t images;
  Form form;                   // of x
  bool channels_last, y_gaps;  // of y
  double density;
  bool bias;
  Activation activation;

  int64_t inputs() const { return height.kernel * width.kernel * channels; }
  int64_t pixels() const { return height.out * width.out; }
};

// Every part on a thread of its own, whose scratch is no longer than that part asks for.
void on_new_threads(int64_t parts, void (*body)(int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) threads.emplace_back(body, part, context);
  for (std::thread& thread : threads) thread.join();
}

template <class Matrix>
void run_matrix(const ConvKernelInfo& kernel, const Matrix& a, const ConvCallOf<float>& call,
                int64_t images, int64_t threads) {
  run_conv(kernel, a, call, images, threads, on_new_threads);
}

template <class Matrix>
void run_matrix(const ConvKernelInfo& kernel, const Matrix& a, const ConvCallOf<BFloat16>& call,
                int64_t images, int64_t threads) {
  Exact<BFloat16> values(a.stored());
  for (int64_t i = 0; i < a.stored(); ++i) values[i] = narrowed<BFloat16>(a.values[i]);
  run_conv(kernel, with_values(a, values.data), call, images, threads, on_new_threads);
}

template <class T>
void run(const ConvKernelInfo& kernel, const Weight& weight, ConvCallOf<T> call, int64_t images,
         int64_t threads, Exact<T>& y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = narrowed<T>(kUntouched);
  call.y = y.data;
  if (kernel.format == Format::kNM) {
    run_matrix(kernel, weight.nm, call, images, threads);
  } else {
    run_matrix(kernel, weight.view, call, images, threads);
  }
}

// Where the inputs of an output find what they are multiplied by, in one dimension: -1 beside x.
int64_t place(const Side& side, int64_t out, int64_t tap) {
  const int64_t at = out * side.stride + tap * side.dilation - side.padding;
  return at < side.in ? at : -1;
}

template <class T>
bool passes(const ConvKernelInfo& kernel, const ConvCase& c) {
  const Side &h = c.height, &w = c.width;
  const int64_t inputs = c.inputs(), pixels = c.pixels(), channels = c.channels * c.groups;
  const Weight weight(kernel.format, {c.rows, c.cols, c.outputs, inputs, 0, 0, 0, c.density, false,
                                      Activation::kNone});
  const Strides at(c.form, channels, h.in, w.in);
  const int64_t gap = c.y_gaps ? 3 : 0;
  const int64_t y_channel = c.channels_last ? 1 : pixels + gap;
  const int64_t y_pixel = c.channels_last ? c.outputs + gap : 1;
  const int64_t y_image = c.channels_last ? pixels * y_pixel : c.outputs * y_channel;

  const auto for_x = [&](const auto& body) {
    for (int64_t i = 0; i < c.images * channels * h.in * w.in; ++i) {
      const int64_t column = i % w.in, row = i / w.in % h.in, channel = i / w.in / h.in % channels;
      body(i / w.in / h.in / channels * at.image + channel * at.channel + row * at.row +
           column * at.column);
    }
  };
  int64_t x_size = 0;
  for_x([&](int64_t i) { x_size = max64(x_size, i + 1); });
  const int64_t y_size = c.images == 0 ? 0
                                       : (c.images - 1) * y_image + (c.outputs - 1) * y_channel +
                                             (pixels - 1) * y_pixel + 1;
  Exact<T> x(x_size), bias(c.outputs), y(y_size), y_of_threads(y_size);
  for (int64_t i = 0; i < x_size; ++i) x[i] = narrowed<T>(std::numeric_limits<float>::infinity());
  for_x([&](int64_t i) { x[i] = narrowed<T>(uniform()); });
  for (int64_t i = 0; i < c.outputs; ++i) bias[i] = narrowed<T>(uniform());

  const ConvCallOf<T> call{
      x.data,       at.image,   at.channel, at.row,  at.column,
      nullptr,      y_image,    y_channel,  y_pixel, c.bias ? bias.data : nullptr,
      c.activation, c.channels, c.groups,   h,       w};
  run(kernel, weight, call, c.images, 1, y, y_size);
  run(kernel, weight, call, c.images, 3, y_of_threads, y_size);
  if (y_size > 0 && std::memcmp(y.data, y_of_threads.data, y_size * sizeof(T)) != 0) {
    std::printf("three threads give other bits: ");
    return false;
  }
  std::vector<char> written(y_size, 0);
  for (int64_t n = 0; n < c.outputs; ++n) {
    std::vector<int64_t> stored;
    for (int64_t k = 0; k < inputs; ++k) {
      if (weight.stored[n * inputs + k]) stored.push_back(k);
    }
    const int64_t first_channel = n / (c.outputs / c.groups) * c.channels;
    for (int64_t i = 0; i < c.images * pixels; ++i) {
      const int64_t image = i / pixels, p = i % pixels;
      double sum = c.bias ? widened(bias[n]) : 0.0, magnitude = std::fabs(sum);
      for (const int64_t k : stored) {
        const int64_t tap = k / c.channels, channel = first_channel + k % c.channels;
        const int64_t row = place(h, p / w.out, tap / w.kernel);
        const int64_t column = place(w, p % w.out, tap % w.kernel);
        if (row < 0 || column < 0) continue;
        const double term =
            double(weight.dense[n * inputs + k]) *
            widened(x[image * at.image + channel * at.channel + row * at.row + column * at.column]);
        sum += term;
        magnitude += std::fabs(term);
      }
      const int64_t to = image * y_image + n * y_channel + p * y_pixel;
      written[to] = 1;
      const float got = widened(y[to]);
      if (is_near<T>(got, sum, magnitude, int64_t(stored.size()) + 4, c.activation)) continue;
      std::printf("y[%d][%d][%d] = %.9g, not %.9g: ", int(image), int(n), int(p), got,
                  activate(sum, c.activation));
      return false;
    }
  }
  for (int64_t i = 0; i < y_size; ++i) {
    if (written[i] || widened(y[i]) == kUntouched) continue;
    std::printf("y written between its pixels at %d: ", int(i));
    return false;
  }
  return true;
}

// A kernel along one side of an image.
struct Taps {
  int64_t kernel, stride, padding, dilation;
};
constexpr Taps kAlone{1, 1, 0, 1}, kThree{3, 1, 1, 1};

Side side_of(int64_t in, const Taps& taps) {
  const int64_t reach = (taps.kernel - 1) * taps.dilation + 1;
  return {in,           (in + 2 * taps.padding - reach) / taps.stride + 1,
          taps.kernel,  taps.stride,
          taps.padding, taps.dilation};
}

constexpr int64_t kWhole = 0;

class Cases {
 public:
  explicit Cases(const ConvKernelInfo& kernel) : kernel_(kernel) {
    const Taps kTaps[] = {kThree,       {3, 2, 1, 1}, {5, 1, 2, 1}, {7, 2, 3, 1}, {2, 1, 0, 1},
                          {3, 1, 2, 2}, {3, 2, 2, 2}, {3, 3, 1, 2}, {3, 4, 6, 6}, {4, 3, 0, 1},
                          {1, 2, 0, 1}, {1, 1, 1, 1}, {3, 7, 2, 1}, {3, 2, 11, 1}};
    // Pixels alone, which are read in x where its form lets kernels do so, of every width.
    for (int64_t width = 1; width <= 34; ++width)
      add(16, kWhole, 1, kAlone, 1, kAlone, width, kForms[0]);
    for (const int64_t width : {47, 48, 49, 50, 95, 96, 97, 128, 130}) {
      add(outputs(turn_ % 3), kWhole, 1, kAlone, 1, kAlone, width, kForms[0]);
    }
    for (const Form form : kForms) {
      add(outputs(2), kWhole, 2, kAlone, 3, kAlone, 5, form);
      add(outputs(1), kWhole, 1, kAlone, 7, kAlone, 7, form);
      add(outputs(0), 41, 1, kAlone, 2, kAlone, 33, form);
      add(outputs(1), 16, 1, kThree, 6, kThree, 21, form);
      add(outputs(2), 20, 1, {3, 2, 1, 1}, 9, {3, 2, 1, 1}, 20, form);
      add(outputs(0), 3, 1, {7, 2, 3, 1}, 15, {7, 2, 3, 1}, 22, form);
      add(outputs(2), 17, 3, kThree, 5, {5, 1, 2, 1}, 8, form);
    }
    // One side like the other, and not.
    for (size_t i = 0; i < std::size(kTaps); ++i) {
      add(outputs(turn_ % 3), 5, 1, kTaps[i], 13, kTaps[i], 14, next_form());
      add(outputs(turn_ % 3), 5, 1, kTaps[i], 13, kTaps[(5 * i + 3) % std::size(kTaps)], 14,
          next_form());
    }
    // Images of a pixel, or of a row or column of them.
    for (const auto& [height, width] : {std::pair(1, 1), {1, 9}, {9, 1}, {1, 70}, {70, 1}}) {
      add(outputs(1), 8, 1, kThree, height, kThree, width, next_form());
      add(outputs(2), 8, 2, {3, 2, 11, 1}, height, {3, 1, 7, 2}, width, next_form());
    }
    // Outputs and channels that fill no vector.
    for (int64_t n = 1; n <= 34; ++n) add(n, 1 + n % 19, 1, kThree, 4, kThree, 7, next_form());
    // Several bands of rows, of many phases and of long rows.
    density_ = 0.1;
    add(5, 32, 1, kThree, 12, kThree, 600, next_form());
    images_ = 3;
    add(outputs(0), 40, 1, {3, 3, 1, 1}, 34, {3, 3, 1, 1}, 151, next_form());
    // Several chunks of weights, and of their sums; work for three threads, by rows and by outputs.
    density_ = 0.9;
    add(32, 32, 3, kThree, 6, kThree, 6, next_form());
    images_ = 1;
    add(300, 32, 1, kThree, 4, kThree, 5, next_form());
    add(320, kWhole, 1, kAlone, 12, kAlone, 12, Form::kRows);
    density_ = 0.0;
    add(outputs(1), 8, 1, kThree, 5, kThree, 5, next_form());
    images_ = 0;
    add(outputs(1), 8, 1, kThree, 5, kThree, 5, next_form());
  }

  const std::vector<ConvCase>& all() const { return cases_; }

 private:
  // That a weight has in one band of outputs or more, the last of them whole or not.
  int64_t outputs(int64_t bands) const {
    const int64_t band = kernel_.format == Format::kNM ? 16 : kernel_.rows;
    return bands == 0 ? band : bands * 2 * band + (bands == 1 ? turn_ % band : 0);
  }
  Form next_form() const { return kForms[turn_ % 5]; }

  // outputs: of a group; so are the channels, or kWhole if blocks, or n:m, are to leave no padding.
  void add(int64_t outputs, int64_t channels, int64_t groups, const Taps& h, int64_t height,
           const Taps& w, int64_t width, Form form) {
    const int64_t kPatterns[][2] = {{2, 4}, {1, 4}, {4, 8}, {8, 16}, {3, 5}, {2, 17}};
    const int64_t kColumns[] = {1, 1, 2, 3, 16};
    const bool is_nm = kernel_.format == Format::kNM;
    const int64_t factor = 1 + turn_ % 3;
    const int64_t rows = is_nm ? kPatterns[turn_ % 6][0] : kernel_.rows * factor;
    const int64_t cols = is_nm ? kPatterns[turn_ % 6][1] : kColumns[turn_ % 5];
    if (channels == kWhole) channels = is_nm ? 8 * cols : 3 * cols;
    // Groups are whole bands.
    const int64_t band = is_nm ? 16 : rows;
    if (groups > 1) outputs = ceil_div(outputs, band) * band;
    ++turn_;
    cases_.push_back({rows, cols, outputs * groups, channels, groups, side_of(height, h),
                      side_of(width, w), images_, form, turn_ % 2 == 0, turn_ % 7 == 0, density_,
                      turn_ % 3 != 0, static_cast<Activation>(turn_ / 2 % 6)});
  }

  const ConvKernelInfo& kernel_;
  std::vector<ConvCase> cases_;
  int64_t turn_ = 0, images_ = 1;
  double density_ = 0.5;
};

void describe(const ConvKernelInfo& kernel, const ConvCase& c, const char* numbers) {
  std::printf(
      "%s, %s, blocks (or n:m) %dx%d, %d outputs, %d groups of %d channels, %d images of "
      "form %d, y %s%s, density %g, bias %d, activation %d",
      kernel.name, numbers, int(c.rows), int(c.cols), int(c.outputs), int(c.groups),
      int(c.channels), int(c.images), int(c.form), c.channels_last ? "channels last" : "rows",
      c.y_gaps ? " with gaps" : "", c.density, int(c.bias), int(c.activation));
  for (const Side& s : {c.height, c.width}) {
    std::printf("; %d pixels, kernel %d, stride %d, padding %d, dilation %d", int(s.in),
                int(s.kernel), int(s.stride), int(s.padding), int(s.dilation));
  }
  std::printf("\n");
}

}  // namespace

void run_convs(const char* isa, int& runs, int& failures) {
  int table_size = 0;
  const ConvKernelInfo* table = conv_kernel_table(&table_size);
  for (int i = 0; i < table_size; ++i) {
    const ConvKernelInfo& kernel = table[i];
    if (std::strcmp(isa, isa_name(kernel.isa)) != 0) continue;
    const Cases cases(kernel);
    for (const ConvCase& c : cases.all()) {
      for (const bool wide : {true, false}) {
        ++runs;
        if (wide ? passes<float>(kernel, c) : passes<BFloat16>(kernel, c)) continue;
        ++failures;
        describe(kernel, c, wide ? "float32" : "bfloat16");
      }
    }
  }
}
