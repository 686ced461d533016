// Conversions of the narrow floats by instructions of the GPU: the bits of those in floats.h, which
// take four times as many instructions. Included by floats.h.
//
// The instructions round to nearest even, keep denormals (there is no .ftz) and, to float8,
// saturate, infinities too. Only their NaNs are others than ours.
#pragma once

namespace pycomm {
namespace {

PYCOMM_INLINE float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.raw));
  return wide;
}

PYCOMM_INLINE Half narrow(float x, Half) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return {uint16_t(x == x ? pair : 0x7e00u)};
}

PYCOMM_INLINE float widen(E5M2 x) { return widen(Half{uint16_t(x.raw << 8)}); }

PYCOMM_INLINE E5M2 narrow(float x, E5M2) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return {uint8_t(x == x ? pair : 0x7eu)};
}

PYCOMM_INLINE float widen(E4M3 x) {
  uint32_t pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(uint16_t(x.raw)));
  return widen(Half{uint16_t(pair)});
}

PYCOMM_INLINE E4M3 narrow(float x, E4M3) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return {uint8_t(x == x ? pair : 0x7fu)};
}

}  // namespace
}  // namespace pycomm
