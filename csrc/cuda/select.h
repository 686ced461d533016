// Magnitudes as integers, and what the launches of a selection hand on to each other.
#pragma once

#include "cuda/block.h"
#include "cuda/grid.h"

namespace pycomm::cuda {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;

// `prefix` is what is known of the threshold, its lower bits zero; `remaining` is how many elements
// that agree with it are still to be taken, the largest first.
struct Selection {
  uint64_t prefix;
  uint64_t remaining;
  uint64_t histogram[kBins];
};

// The unsigned integer of a float type, and where its magnitudes are NaN.
template <DType D>
struct KeyOf;
template <>
struct KeyOf<DType::f16> {
  using Raw = uint16_t;
  static constexpr Raw infinity = 0x7c00;
};
template <>
struct KeyOf<DType::bf16> {
  using Raw = uint16_t;
  static constexpr Raw infinity = 0x7f80;
};
template <>
struct KeyOf<DType::f32> {
  using Raw = uint32_t;
  static constexpr Raw infinity = 0x7f800000u;
};
template <>
struct KeyOf<DType::f64> {
  using Raw = uint64_t;
  static constexpr Raw infinity = 0x7ff0000000000000ull;
};

// Ordered as |x|; every NaN is the largest of all.
template <DType D, class S>
__device__ typename KeyOf<D>::Raw key_of(S x) {
  using Raw = typename KeyOf<D>::Raw;
  constexpr Raw most = Raw(Raw(~Raw(0)) >> 1);
  const Raw magnitude = Raw(bits<Raw>(x) & most);
  return magnitude > KeyOf<D>::infinity ? most : magnitude;
}

// ---- tiles, in the order of indices: rounds of a vector for each thread

constexpr int kTileRounds = 4;

template <class S>
constexpr int kTileWidth = kVectorBytes / int(sizeof(S));
template <class S>
constexpr int64_t kTileElements = int64_t(kTileRounds) * kBlockThreads * kTileWidth<S>;

// This thread's elements [at, at + width) of an array; those beyond `count` stay as they are.
template <class S>
__device__ void load_part(const S* x, int64_t at, int64_t count, Run<S, kTileWidth<S>>& run) {
  constexpr int width = kTileWidth<S>;
  if (at + width <= count && beyond_boundary(x + at) == 0) return load_vectors(x + at, run);
#pragma unroll
  for (int e = 0; e < width; e++)
    if (at + e < count) run.at[e] = x[at + e];
}

}  // namespace pycomm::cuda
