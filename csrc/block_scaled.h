// Block-scaled quantisation: the arithmetic of one block and one element, for host and device.
//
// An array is cut into blocks of kQuantBlock elements; the last may be shorter. A block has one
// float32 scale, amax / largest, and an element is stored as x * (1 / scale), rounded to nearest
// even. Unnamed namespace: see elements.h.
#pragma once

#include "elements.h"

namespace pycomm {
namespace {

constexpr int kQuantBlock = 256;
constexpr uint32_t kInfinityBits = 0x7f800000u;

// Magnitudes are the bits of |x| as float32: as integers they are ordered by size, then infinity,
// then NaN.
PYCOMM_INLINE uint32_t magnitude(float x) { return bits<uint32_t>(x) & 0x7fffffffu; }

// A stored type: its largest value, and conversions to and from float32.
template <DType Q>
struct Quantum {
  using S = typename ElementOf<Q>::S;
  static constexpr float largest = Q == DType::e4m3 ? 448.0f : 57344.0f;
  static PYCOMM_INLINE S encode(float x) { return narrow(x, S{}); }
  static PYCOMM_INLINE float decode(S q) { return widen(q); }
};

// From −127 to 127; NaN becomes 127.
template <>
struct Quantum<DType::i8> {
  using S = int8_t;
  static constexpr float largest = 127.0f;
  static constexpr float magic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  static PYCOMM_INLINE S encode(float x) {
    float low = x < largest ? x : largest, bounded = low > -largest ? low : -largest;
    return S(bits<uint32_t>(bounded + magic) & 0xffu);
  }
  static PYCOMM_INLINE float decode(S q) { return float(q); }
};

// The scale of a block whose largest magnitude is amax. 0: all elements are zero. NaN: one is NaN
// or infinite. At least 2⁻¹²⁶, so that its inverse is finite; never so large that largest * scale
// overflows.
PYCOMM_INLINE float scale_of(uint32_t amax, float largest) {
  if (amax == 0) return 0.0f;
  if (amax >= kInfinityBits) return bits<float>(kNanBits);
  float scale = bits<float>(amax) / largest, least = bits<float>(1u << 23);
  if (scale < least) return least;
  bool overflows = magnitude(scale * largest) >= kInfinityBits;
  return overflows ? bits<float>(bits<uint32_t>(scale) - 1) : scale;
}

// What elements are multiplied by. NaN, if the scale is: then every element is stored as NaN.
PYCOMM_INLINE float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// A sum on its way out; the divisor is 1 where no mean is asked for.
PYCOMM_INLINE float mean_of(float sum, double divisor) {
  return divisor == 1.0 ? sum : divided(sum, divisor);
}

}  // namespace
}  // namespace pycomm
