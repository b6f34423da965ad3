// The index of the transpose: which blocks each block column has, by ascending block rows. A warp
// looks for its block column in 32 block rows at once.
#include <cuda_runtime.h>

#include "cuda/columns_product.h"
#include "cuda/kernel.h"
#include "cuda/launch.inl.h"
#include "cuda/ptx/memory.h"

namespace sparsekern::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;

// The block of a block row at a block column, or -1. Columns ascend within a block row.
__device__ inline int find(const Blocks& weight, int row, int column) {
  int low = ptx::load(weight.offsets + row);
  const int end = ptx::load(weight.offsets + (row + 1));
  int high = end;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (int(ptx::load(weight.columns + middle)) < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < end && int(ptx::load(weight.columns + low)) == column ? low : -1;
}

__global__ void __launch_bounds__(kThreads)
    block_columns(const __grid_constant__ ColumnsProduct p) {
  const int lane = int(threadIdx.x) % 32;
  const int column = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  if (column >= p.weight.block_columns) return;
  const int64_t list = int64_t{column} * p.weight.block_rows;
  int count = 0;
  for (int first = 0; first < p.weight.block_rows; first += 32) {
    const int row = first + lane;
    const int block = row < p.weight.block_rows ? find(p.weight, row, column) : -1;
    const unsigned found = __ballot_sync(~0u, block >= 0);
    if (block >= 0) {
      const int64_t at = list + count + __popc(found & ((1u << lane) - 1));
      ptx::store(p.block_rows + at, row);
      ptx::store(p.blocks + at, block);
    }
    count += __popc(found);
  }
  if (lane == 0) ptx::store(p.counts + column, count);
}

}  // namespace

// `argument`: a ColumnsProduct; there are no numbers in it.
cudaError_t block_columns_index(const void* argument, Number, cudaStream_t stream) {
  const auto& p = *static_cast<const ColumnsProduct*>(argument);
  const Grid grid{ceil_div(p.weight.block_columns, kWarps), 1};
  return launch(block_columns, grid, kThreads, 0, p, stream);
}

cudaError_t probe() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, block_columns);
}

}  // namespace sparsekern::cuda
