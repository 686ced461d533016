// Wide words of memory, and how one is read from an address that it is not aligned to.
#pragma once

#include "elements.h"

namespace pycomm::cuda {

struct alignas(16) Word16 {
  uint64_t low, high;
};

// The unsigned word of 1, 2, 4, 8 or 16 bytes.
template <int Bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using T = uint8_t;
};
template <>
struct WordOf<2> {
  using T = uint16_t;
};
template <>
struct WordOf<4> {
  using T = uint32_t;
};
template <>
struct WordOf<8> {
  using T = uint64_t;
};
template <>
struct WordOf<16> {
  using T = Word16;
};

template <class T>
PYCOMM_INLINE T& at(uint64_t address) {
  return *reinterpret_cast<T*>(address);
}

// The word that begins `shift` bytes into the pair (a, b); little-endian. For 0 it is a.
PYCOMM_INLINE uint32_t straddling(uint32_t a, uint32_t b, int shift) {
  return a >> (8 * shift) | (b << 1) << (31 - 8 * shift);
}
PYCOMM_INLINE uint64_t straddling(uint64_t a, uint64_t b, int shift) {
  return a >> (8 * shift) | (b << 1) << (63 - 8 * shift);
}
PYCOMM_INLINE Word16 straddling(Word16 a, Word16 b, int shift) {
  const bool far = shift >= 8;
  const uint64_t x = far ? a.high : a.low, y = far ? b.low : a.high, z = far ? b.high : b.low;
  return {straddling(x, y, shift & 7), straddling(y, z, shift & 7)};
}

}  // namespace pycomm::cuda
