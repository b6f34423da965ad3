// The control plane: CPU facts, the kernel table, micro-benchmarks. No tensor passes here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/conv_dispatch.h"
#include "cpu/dispatch.h"
#include "cpu/grad_dispatch.h"
#include "cpu/peak.h"

namespace py = pybind11;

namespace sparsekern {
namespace {

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (int level = 0; level < kIsaLevels; ++level) {
    const Isa isa = static_cast<Isa>(level);
    if (isa_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

void set_isa(const std::string& name) {
  for (int level = 0; level < kIsaLevels; ++level) {
    const Isa isa = static_cast<Isa>(level);
    if (name == isa_name(isa) && set_isa_limit(isa)) return;
  }
  throw py::value_error("instruction set '" + name + "' is not supported by this CPU");
}

const char* numbers_name(Numbers numbers) {
  return numbers == Numbers::kFloat32 ? "float32" : "bfloat16";
}

Numbers parse_numbers(const std::string& name) {
  for (const Numbers numbers : {Numbers::kFloat32, Numbers::kBFloat16}) {
    if (name == numbers_name(numbers)) return numbers;
  }
  throw py::value_error("expected values of float32 or bfloat16, got '" + name + "'");
}

const char* format_name(Format format) { return format == Format::kBlock ? "block" : "nm"; }

const char* family_name(KernelFamily family) {
  switch (family) {
    case KernelFamily::kOutputs:
      return "outputs";
    case KernelFamily::kTokens:
      return "tokens";
    case KernelFamily::kSingle:
      return "single";
    case KernelFamily::kTiles:
      return "tiles";
    case KernelFamily::kPairs:
      return "pairs";
    default:
      return "vector";
  }
}

// What the lines of all tables have.
template <class Kernel>
py::dict record_of(const Kernel& kernel) {
  py::dict record;
  record["name"] = kernel.name;
  record["format"] = format_name(kernel.format);
  record["rows"] = kernel.rows;
  record["multiple"] = kernel.multiple;
  record["isa"] = isa_name(kernel.isa);
  record["runs_here"] = kernel.run != nullptr && isa_supported(kernel.isa);
  return record;
}

// The lines of a table; `add` adds to a record what only this table has.
template <class Kernel, class Add>
py::list records_of(const Kernel* (*table_of)(int*), const Add& add) {
  int count = 0;
  const Kernel* table = table_of(&count);
  py::list records;
  for (int i = 0; i < count; ++i) {
    py::dict record = record_of(table[i]);
    add(table[i], record);
    records.append(record);
  }
  return records;
}

const char* cores_name(Cores cores) { return cores == Cores::kAny ? "any" : "amd"; }

py::list kernels() {
  return records_of(kernel_table, [](const KernelInfo& kernel, py::dict& record) {
    record["numbers"] = numbers_name(kernel.numbers);
    record["min_tokens"] = kernel.min_tokens;
    record["cores"] = cores_name(kernel.cores);
    record["family"] = family_name(kernel.family);
    record["panel"] = kernel.panel;
    record["outputs"] = kernel.outputs;
    record["lanes"] = kernel.lanes;
  });
}

py::list grad_kernels() {
  return records_of(grad_kernel_table, [](const GradKernelInfo& kernel, py::dict& record) {
    record["grad"] = kernel.op == GradOp::kInput ? "input" : "values";
  });
}

py::list conv_kernels() {
  return records_of(conv_kernel_table, [](const ConvKernelInfo& kernel, py::dict& record) {
    record["cores"] = cores_name(kernel.cores);
  });
}

// That of the CUDA library, which may not be built: what there would be.
py::list cuda_kernels() {
  constexpr int64_t kAnyTokens = 0;
  constexpr const char *kBlock = "block", *kNM = "nm", *kLinear = "linear",
                       *kGradInput = "grad_input", *kGradValues = "grad_values",
                       *kColumns = "columns", *kConv = "conv";
  py::list records;
  const auto add = [&](const char* name, const char* format, const char* purpose, int height,
                       int64_t min_tokens, int64_t max_tokens) {
    py::dict record;
    record["name"] = name;
    record["format"] = format;
    record["purpose"] = purpose;
    record["height"] = height;
    record["min_tokens"] = min_tokens;
    record["max_tokens"] = max_tokens == kAnyTokens ? py::object(py::none()) : py::int_(max_tokens);
    records.append(record);
  };
#define SPARSEKERN_CUDA_KERNEL(name, format, purpose, height, min_tokens, max_tokens) \
  add(#name, format, purpose, height, min_tokens, max_tokens);
#include "cuda/kernels.inc"
#undef SPARSEKERN_CUDA_KERNEL
  return records;
}

Format parse_format(const std::string& name) {
  for (const Format format : {Format::kBlock, Format::kNM}) {
    if (name == format_name(format)) return format;
  }
  throw py::value_error("unknown format '" + name + "'");
}

std::string choose(const std::string& format, int64_t block_rows, int64_t tokens,
                   const std::string& values) {
  const KernelInfo* kernel =
      choose_kernel(parse_format(format), parse_numbers(values), block_rows, tokens);
  return kernel == nullptr ? "" : kernel->name;
}

// geometry: shape of the weight (4), stride, padding, dilation (2 each), groups.
template <class T>
const char* chosen_conv(Format format, int64_t block_rows, int64_t inputs,
                        const std::vector<int64_t>& images, bool channels_last,
                        const std::vector<int64_t>& geometry) {
  const auto side_of = [&](int dim) {
    Side side{images[dim],      0, geometry[dim], geometry[dim + 2], geometry[dim + 4],
              geometry[dim + 6]};
    side.out =
        (side.in + 2 * side.padding - (side.kernel - 1) * side.dilation - 1) / side.stride + 1;
    return side;
  };
  ConvCallOf<T> call{};
  call.height = side_of(2);
  call.width = side_of(3);
  call.channels = geometry[1];
  call.groups = geometry[10];
  const int64_t channels = images[1], pixels = images[2] * images[3];
  const bool lines = channels_last || pixels == 1;
  call.x_image = channels * pixels;
  call.x_channel = lines ? 1 : pixels;
  call.x_column = lines ? channels : 1;
  call.x_row = images[3] * call.x_column;
  call.y_channel =
      channels_last || call.height.out * call.width.out == 1 ? 1 : call.height.out * call.width.out;
  const ConvChoice choice = choose_conv(format, block_rows, inputs, call, images[0]);
  if (choice.product != nullptr) return choice.product->name;
  return choice.conv == nullptr ? "" : choice.conv->name;
}

std::string choose_conv_name(const std::string& format, int64_t block_rows, int64_t inputs,
                             const std::vector<int64_t>& images, bool channels_last,
                             const std::vector<int64_t>& geometry, const std::string& values) {
  if (images.size() != 4 || geometry.size() != 11) {
    throw py::value_error("expected four sizes of images and eleven numbers of a geometry");
  }
  const auto chosen =
      parse_numbers(values) == Numbers::kFloat32 ? &chosen_conv<float> : &chosen_conv<BFloat16>;
  return chosen(parse_format(format), block_rows, inputs, images, channels_last, geometry);
}

}  // namespace
}  // namespace sparsekern

PYBIND11_MODULE(_C, m) {
  using namespace sparsekern;
  m.doc() = "Compiled kernels of sparsekern; importing this module registers the CPU ops.";
  m.def("isa_supported", &supported, "Levels this CPU and its system support, ascending.");
  m.def("isa", [] { return std::string(isa_name(isa_limit())); }, "Level in use.");
  m.def("set_isa", &set_isa, py::arg("name"), "Lower or restore the level in use.");
  m.def("kernels", &kernels, "The CPU kernel table.");
  m.def("grad_kernels", &grad_kernels, "The CPU kernel table of the gradients.");
  m.def("conv_kernels", &conv_kernels, "The CPU kernel table of the convolutions.");
  m.def("cuda_kernels", &cuda_kernels, "The table of the CUDA library, built or not.");
  m.def("choose", &choose, py::arg("format"), py::arg("rows"), py::arg("tokens"),
        py::arg("values") = "float32",
        "Name of the kernel that serves a format with so many rows together; empty if none does.");
  m.def("choose_conv", &choose_conv_name, py::arg("format"), py::arg("rows"), py::arg("inputs"),
        py::arg("images"), py::arg("channels_last"), py::arg("geometry"),
        py::arg("values") = "float32",
        "Name of the kernel that convolves images with a weight of so many inputs, padding "
        "included; empty if none does. geometry: the weight's shape, stride, padding, dilation, "
        "groups.");
  m.def(
      "fma_peak_gflops",
      [](double seconds, const std::string& values) {
        return fma_peak_gflops(seconds, parse_numbers(values));
      },
      py::arg("seconds"), py::arg("values") = "float32", py::call_guard<py::gil_scoped_release>(),
      "Multiply-add peak of one core at the level in use, in GFLOP/s: of bfloat16 where the level "
      "multiplies them, else of float32.");
  m.def("multiply_adds_a_second", &multiply_adds_a_second, py::arg("lanes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Multiply-adds of vectors of so many floats that one core does a second, in registers.");
  m.def("multiply_add_latency", &multiply_add_latency, py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Seconds from one multiply-add to another that needs its result.");
  m.def("loads_a_second", &loads_a_second, py::arg("lanes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Loads and splats of such vectors out of L1 beside half as many multiply-adds, a second.");
  m.def("widened_a_second", &widened_a_second, py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "bfloat16 numbers that one core widens to float32 a second, in L2.");
  m.def("read_bandwidth_gbs", &read_bandwidth_gbs, py::arg("bytes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Rate at which one core reads a buffer of so many bytes again and again, in GB/s.");
}
