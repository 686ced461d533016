// How a warp walks over quantised arrays: which elements of a block belong to which lane.
#pragma once

#include "block_scaled.h"
#include "cuda/grid.h"

namespace pycomm::cuda {

constexpr int kLanes = 32;
constexpr int kLaneElements = kQuantBlock / kLanes;

// The elements of one lane of one block, in runs: Width consecutive ones, which the next lane's
// follow. Vector: a run of the wide type fills 16 bytes. Otherwise runs are single elements.
template <class Wide, bool Vector>
struct Lane {
  static constexpr int width = Vector ? kVectorBytes / int(sizeof(Wide)) : 1;
  static constexpr int runs = kLaneElements / width;

  int64_t first;  // of the block
  int64_t count;  // of the array

  __device__ int64_t run(int r) const {
    return first + (r * kLanes + int(threadIdx.x) % kLanes) * width;
  }
  __device__ bool has(int64_t i) const { return Vector || i < count; }
};

// The word of 4 or 8 bytes in which a run of Width one-byte elements travels.
template <int Width>
struct Packed {
  using T = uint8_t;
};
template <>
struct Packed<4> {
  using T = uint32_t;
};
template <>
struct Packed<8> {
  using T = uint64_t;
};

template <int Width, class S>
__device__ void load_packed(const S* from, Run<S, Width>& run) {
  using Word = typename Packed<Width>::T;
  Word word = *reinterpret_cast<const Word*>(from);
  memcpy(run.at, &word, sizeof(word));
}

template <int Width, class S>
__device__ void store_packed(S* to, const Run<S, Width>& run) {
  using Word = typename Packed<Width>::T;
  Word word;
  memcpy(&word, run.at, sizeof(word));
  *reinterpret_cast<Word*>(to) = word;
}

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
  constexpr int warps = kBlockThreads / kLanes;
  const int64_t warp = int64_t(blockIdx.x) * warps + int(threadIdx.x) / kLanes;
  const int64_t step = int64_t(gridDim.x) * warps * Each;
  for (int64_t first = begin + warp * Each; first < end; first += step) body(first);
}

}  // namespace pycomm::cuda
