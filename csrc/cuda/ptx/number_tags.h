// The 16-bit numbers that tensor cores multiply, as tags.
#pragma once

namespace sparsekern::ptx {

struct BFloat16 {
  static constexpr bool kIsBFloat16 = true;
};

struct Float16 {
  static constexpr bool kIsBFloat16 = false;
};

}  // namespace sparsekern::ptx
