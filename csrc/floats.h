// Bits of floats, and the narrow floats: stored as integers, computed as float. Included by
// elements.h.
//
// Branch-free, so that compilers turn the loops into vector code; denormals by integer conversion,
// so that the processor's denormal mode does not matter.
#pragma once

#include "system.h"

#ifdef __CUDACC__
#define PYCOMM_INLINE __host__ __device__ __forceinline__
#else
#define PYCOMM_INLINE inline
#endif

namespace pycomm {
namespace {

// ---- bits

template <class To, class From>
PYCOMM_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

constexpr uint32_t kNanBits = 0x7fc00000u;
constexpr uint64_t kNanBits64 = 0x7ff8000000000000ull;

PYCOMM_INLINE float canonical(float x) { return x == x ? x : bits<float>(kNanBits); }
PYCOMM_INLINE double canonical(double x) { return x == x ? x : bits<double>(kNanBits64); }

struct Half {
  uint16_t raw;
};
struct BFloat16 {
  uint16_t raw;
};
struct E4M3 {
  uint8_t raw;
};
struct E5M2 {
  uint8_t raw;
};

PYCOMM_INLINE float widen(BFloat16 x) { return bits<float>(uint32_t(x.raw) << 16); }

PYCOMM_INLINE BFloat16 narrow(float x, BFloat16) {
  uint32_t u = bits<uint32_t>(x);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {uint16_t(x == x ? rounded : kNanBits >> 16)};
}

}  // namespace
}  // namespace pycomm

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#include "device_floats.h"
#else

namespace pycomm {
namespace {

// An IEEE-like format of E exponent and M mantissa bits, with infinities and NaNs.
template <int E, int M>
PYCOMM_INLINE float widen_ieee(uint32_t raw) {
  constexpr uint32_t bias = (1u << (E - 1)) - 1, mantissa = (1u << M) - 1, top = (1u << E) - 1;
  constexpr float unit = 1.0f / float(1ull << (bias + M - 1));  // the smallest denormal
  uint32_t exponent = (raw >> M) & top, field = (raw & ((1u << (E + M)) - 1)) << (23 - M);
  uint32_t normal = field + ((127 - bias) << 23), special = field | 0x7f800000u;
  uint32_t denormal = bits<uint32_t>(float(int32_t(raw & mantissa)) * unit);
  uint32_t magnitude = exponent == 0 ? denormal : exponent == top ? special : normal;
  return bits<float>(magnitude | ((raw >> (E + M)) << 31));
}

// Round the magnitude |x| (its bits) to nearest, ties to even; values beyond the range carry into
// the exponent.
template <int E, int M>
PYCOMM_INLINE uint32_t round_ieee(uint32_t magnitude) {
  constexpr uint32_t bias = (1u << (E - 1)) - 1, drop = 23 - M, smallest = (127 - bias + 1) << 23;
  // Adding a float whose last bit weighs as much as the smallest denormal rounds in hardware.
  constexpr uint32_t magic = (127 - bias + 1 + drop) << 23;
  uint32_t normal =
      (magnitude + ((1u << (drop - 1)) - 1) + ((magnitude >> drop) & 1u) - ((127 - bias) << 23)) >>
      drop;
  uint32_t denormal = bits<uint32_t>(bits<float>(magnitude) + bits<float>(magic)) - magic;
  return magnitude < smallest ? denormal : normal;
}

PYCOMM_INLINE float widen(Half x) { return widen_ieee<5, 10>(x.raw); }

PYCOMM_INLINE Half narrow(float x, Half) {
  uint32_t u = bits<uint32_t>(x), magnitude = u & 0x7fffffffu;
  uint32_t rounded = magnitude >= 0x47800000u ? 0x7c00u : round_ieee<5, 10>(magnitude);
  return {uint16_t((x == x ? rounded : 0x7e00u) | (x == x ? (u >> 16) & 0x8000u : 0u))};
}

PYCOMM_INLINE float widen(E5M2 x) { return widen_ieee<5, 2>(x.raw); }

PYCOMM_INLINE E5M2 narrow(float x, E5M2) {  // saturates at ±57344
  uint32_t u = bits<uint32_t>(x), magnitude = u & 0x7fffffffu;
  uint32_t rounded = magnitude >= 0x47600000u ? 0x7bu : round_ieee<5, 2>(magnitude);
  return {uint8_t((x == x ? rounded : 0x7eu) | (x == x ? (u >> 24) & 0x80u : 0u))};
}

PYCOMM_INLINE float widen(E4M3 x) {  // no infinities; all ones is NaN
  uint32_t raw = x.raw, exponent = (raw >> 3) & 15u;
  uint32_t normal = ((raw & 0x7fu) << 20) + (120u << 23);
  uint32_t denormal = bits<uint32_t>(float(int32_t(raw & 7u)) * (1.0f / 512.0f));
  uint32_t magnitude = exponent == 0 ? denormal : (raw & 0x7fu) == 0x7fu ? kNanBits : normal;
  return bits<float>(magnitude | ((raw >> 7) << 31));
}

PYCOMM_INLINE E4M3 narrow(float x, E4M3) {  // saturates at ±448
  uint32_t u = bits<uint32_t>(x), magnitude = u & 0x7fffffffu;
  uint32_t rounded = magnitude >= 0x43e00000u ? 0x7eu : round_ieee<4, 3>(magnitude);
  return {uint8_t((x == x ? rounded : 0x7fu) | (x == x ? (u >> 24) & 0x80u : 0u))};
}

}  // namespace
}  // namespace pycomm

#endif
