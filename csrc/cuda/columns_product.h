// The making of the index of a transpose.
#pragma once

#include <stdint.h>

#include "cuda/call.h"

namespace sparsekern::cuda {

struct ColumnsProduct {
  Blocks weight;  // without values
  // What BlockColumns has.
  ptx::Global<int32_t> counts, block_rows, blocks;
};

}  // namespace sparsekern::cuda
