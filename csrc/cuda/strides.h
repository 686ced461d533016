// From the number of an item in a strided array to its offset, without divisions.
#pragma once

#include "elements.h"

namespace pycomm::cuda {

constexpr int kMaxDims = 9;  // 8, and one more where items are cut into smaller ones

PYCOMM_INLINE uint32_t high_half(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
PYCOMM_INLINE uint64_t high_half(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  __extension__ typedef unsigned __int128 Wide;
  return uint64_t(Wide(a) * b >> 64);
#endif
}

// n / d for n < 2^(bits − 1), where shift = ⌈log2 d⌉ and magic = ⌈2^(bits − 1 + shift) / d⌉:
// magic·d exceeds that power by less than d ≤ 2^shift, so n·magic by less than one quotient.
template <class Index>
PYCOMM_INLINE Index quotient(Index n, uint64_t magic, int64_t shift) {
  return high_half(Index(2 * n), Index(magic)) >> shift;
}

// Sizes and strides (bytes), the outermost dimension first; unused ones are 0.
struct Dims {
  int64_t count;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];
  uint64_t magics[kMaxDims];  // of sizes, for the Index that is used
  int64_t shifts[kMaxDims];
};

template <class Index>
PYCOMM_INLINE int64_t offset_bytes(Index item, const Dims& dims) {
  int64_t offset = 0;
  for (int64_t k = dims.count - 1; k > 0; k--) {
    const Index next = quotient(item, dims.magics[k], dims.shifts[k]);
    offset += int64_t(item - next * Index(dims.sizes[k])) * dims.strides[k];
    item = next;
  }
  return offset + int64_t(item) * dims.strides[0];
}

}  // namespace pycomm::cuda
