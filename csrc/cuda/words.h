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

// What lies in the device's memory; said so, since generic accesses are slower.
template <class T>
PYCOMM_INLINE T& at(uint64_t address) {
#ifdef __CUDA_ARCH__
  return *static_cast<T*>(__cvta_global_to_generic(address));
#else
  return *reinterpret_cast<T*>(address);
#endif
}

// Writes a word there by one instruction: the compiler, left to itself, splits some of 16 bytes.
template <class T>
PYCOMM_INLINE void put(T* to, T word) {
  *to = word;
}
PYCOMM_INLINE void put(Word16* to, Word16 word) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v2.b64 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(to)), "l"(word.low), "l"(word.high)
               : "memory");
#else
  *to = word;
#endif
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
