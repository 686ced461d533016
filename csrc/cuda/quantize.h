// How a warp walks over quantised arrays: which elements of a block belong to which lane.
#pragma once

#include "block_scaled.h"
#include "cuda/block.h"

namespace pycomm::cuda {

constexpr int kLaneElements = kQuantBlock / kWarpThreads;

// The elements of one lane of one block, in runs: Width consecutive ones, which the next lane's
// follow. Vector: a run of the wide type fills 16 bytes. Otherwise runs are single elements.
template <class Wide, bool Vector>
struct Lane {
  static constexpr int width = Vector ? kVectorBytes / int(sizeof(Wide)) : 1;
  static constexpr int runs = kLaneElements / width;

  int64_t first;  // of the block
  int64_t count;  // of the array

  __device__ int64_t run(int r) const {
    return first + (r * kWarpThreads + int(threadIdx.x) % kWarpThreads) * width;
  }
  __device__ bool has(int64_t i) const { return Vector || i < count; }
};

// Whether runs of the wide type start at 16-byte boundaries, and those of one byte at words.
template <class Wide>
__device__ bool aligned(const void* wide, const void* narrow) {
  constexpr int width = kVectorBytes / int(sizeof(Wide));
  return beyond_boundary(wide) == 0 && beyond_boundary(narrow) % width == 0;
}

// Deals the blocks [begin, end) to the warps of the grid, Each consecutive ones at a time:
// body(first) takes first … first + Each - 1, those below `end`.
template <int Each, class Body>
__device__ void deal_blocks(int64_t begin, int64_t end, Body body) {
  const int64_t warp = int64_t(blockIdx.x) * kBlockWarps + int(threadIdx.x) / kWarpThreads;
  const int64_t step = int64_t(gridDim.x) * kBlockWarps * Each;
  for (int64_t first = begin + warp * Each; first < end; first += step) body(first);
}

}  // namespace pycomm::cuda
