// Element types and reduce operations: one definition for host and device.
//
// Everything lives in an unnamed namespace: the file is compiled at several instruction levels into
// one library, and a function compiled for one level must never be picked by the linker for
// another.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define PYCOMM_INLINE __host__ __device__ __forceinline__
#else
#define PYCOMM_INLINE inline
#endif

namespace pycomm {
namespace {

// ---- bits
// ----------------------------------------------------------------------------------------

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

// ---- narrow floats: stored as integers, computed as float
// ------------------------------------------- Branch-free, so that compilers turn the loops into
// vector code; denormals by integer conversion, so that the processor's denormal mode does not
// matter.

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

// ---- complex
// ---------------------------------------------------------------------------------------

template <class T>
struct Complex {
  T re, im;
};
template <class T>
PYCOMM_INLINE Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
PYCOMM_INLINE Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
PYCOMM_INLINE Complex<T> canonical(Complex<T> x) {
  return {canonical(x.re), canonical(x.im)};
}

// ---- element types: how each is stored, and the type A that its sums are formed in
// --------------------

enum class DType : int {
  b8,
  i8,
  i16,
  i32,
  i64,
  u8,
  u16,
  u32,
  u64,
  f16,
  bf16,
  f32,
  f64,
  e4m3,
  e5m2,
  c64,
  c128
};
constexpr int kDTypes = 17;

enum class Family { boolean, integer, floating, complex };

template <class Stored, class Accumulator, Family F>
struct Element {
  using S = Stored;
  using A = Accumulator;
  static constexpr Family family = F;
  static PYCOMM_INLINE A load(S x) { return A(x); }
  static PYCOMM_INLINE S store(A x) { return S(x); }
};

template <class Stored>
struct NarrowFloat {
  using S = Stored;
  using A = float;
  static constexpr Family family = Family::floating;
  static PYCOMM_INLINE A load(S x) { return widen(x); }
  static PYCOMM_INLINE S store(A x) { return narrow(x, S{}); }
};

template <class T, Family F>
struct WideFloat {
  using S = T;
  using A = T;
  static constexpr Family family = F;
  static PYCOMM_INLINE A load(S x) { return x; }
  static PYCOMM_INLINE S store(A x) { return canonical(x); }
};

struct Boolean {
  using S = uint8_t;
  using A = uint8_t;
  static constexpr Family family = Family::boolean;
  static PYCOMM_INLINE A load(S x) { return x != 0; }
  static PYCOMM_INLINE S store(A x) { return x; }
};

template <DType D>
struct ElementOf;
#define PYCOMM_ELEMENT(D, ...) \
  template <>                  \
  struct ElementOf<DType::D> : __VA_ARGS__ {}
PYCOMM_ELEMENT(b8, Boolean);
PYCOMM_ELEMENT(i8, Element<int8_t, int8_t, Family::integer>);
PYCOMM_ELEMENT(i16, Element<int16_t, int16_t, Family::integer>);
PYCOMM_ELEMENT(i32, Element<int32_t, int32_t, Family::integer>);
PYCOMM_ELEMENT(i64, Element<int64_t, int64_t, Family::integer>);
PYCOMM_ELEMENT(u8, Element<uint8_t, uint8_t, Family::integer>);
PYCOMM_ELEMENT(u16, Element<uint16_t, uint16_t, Family::integer>);
PYCOMM_ELEMENT(u32, Element<uint32_t, uint32_t, Family::integer>);
PYCOMM_ELEMENT(u64, Element<uint64_t, uint64_t, Family::integer>);
PYCOMM_ELEMENT(f16, NarrowFloat<Half>);
PYCOMM_ELEMENT(bf16, NarrowFloat<BFloat16>);
PYCOMM_ELEMENT(f32, WideFloat<float, Family::floating>);
PYCOMM_ELEMENT(f64, WideFloat<double, Family::floating>);
PYCOMM_ELEMENT(e4m3, NarrowFloat<E4M3>);
PYCOMM_ELEMENT(e5m2, NarrowFloat<E5M2>);
PYCOMM_ELEMENT(c64, WideFloat<Complex<float>, Family::complex>);
PYCOMM_ELEMENT(c128, WideFloat<Complex<double>, Family::complex>);
#undef PYCOMM_ELEMENT

// ---- operations
// --------------------------------------------------------------------------------------

enum class Op : int { sum, avg, prod, min, max, band, bor, bxor, premul_sum };
constexpr int kOps = 9;

PYCOMM_INLINE constexpr bool exists(Op op, Family family) {
  bool bitwise = op == Op::band || op == Op::bor || op == Op::bxor,
       order = op == Op::min || op == Op::max;
  switch (family) {
    case Family::boolean:
      return bitwise || order;
    case Family::integer:
      return bitwise || order || op == Op::sum || op == Op::prod;
    case Family::floating:
      return !bitwise;
    case Family::complex:
      return !bitwise && !order;
  }
  return false;
}

// Integers wrap around: sums and products are formed in the unsigned type of at least 32 bits.
template <class T>
struct Modular {
  using U = uint64_t;
};
template <>
struct Modular<int8_t> {
  using U = uint32_t;
};
template <>
struct Modular<uint8_t> {
  using U = uint32_t;
};
template <>
struct Modular<int16_t> {
  using U = uint32_t;
};
template <>
struct Modular<uint16_t> {
  using U = uint32_t;
};
template <>
struct Modular<int32_t> {
  using U = uint32_t;
};
template <>
struct Modular<uint32_t> {
  using U = uint32_t;
};

template <class T>
PYCOMM_INLINE T add(T a, T b) {
  return T(typename Modular<T>::U(a) + typename Modular<T>::U(b));
}
PYCOMM_INLINE float add(float a, float b) { return a + b; }
PYCOMM_INLINE double add(double a, double b) { return a + b; }
template <class T>
PYCOMM_INLINE Complex<T> add(Complex<T> a, Complex<T> b) {
  return a + b;
}

template <class T>
PYCOMM_INLINE T multiply(T a, T b) {
  return T(typename Modular<T>::U(a) * typename Modular<T>::U(b));
}
PYCOMM_INLINE float multiply(float a, float b) { return a * b; }
PYCOMM_INLINE double multiply(double a, double b) { return a * b; }
template <class T>
PYCOMM_INLINE Complex<T> multiply(Complex<T> a, Complex<T> b) {
  return a * b;
}

// Of two equal floats, the bitwise "or" is the minimum (−0 before +0) and the "and" the maximum.
template <class T>
PYCOMM_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
PYCOMM_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}
PYCOMM_INLINE float smaller(float a, float b) {
  float equal = bits<float>(bits<uint32_t>(a) | bits<uint32_t>(b));
  return a < b ? a : b < a ? b : a == b ? equal : bits<float>(kNanBits);
}
PYCOMM_INLINE float larger(float a, float b) {
  float equal = bits<float>(bits<uint32_t>(a) & bits<uint32_t>(b));
  return a < b ? b : b < a ? a : a == b ? equal : bits<float>(kNanBits);
}
PYCOMM_INLINE double smaller(double a, double b) {
  double equal = bits<double>(bits<uint64_t>(a) | bits<uint64_t>(b));
  return a < b ? a : b < a ? b : a == b ? equal : bits<double>(kNanBits64);
}
PYCOMM_INLINE double larger(double a, double b) {
  double equal = bits<double>(bits<uint64_t>(a) & bits<uint64_t>(b));
  return a < b ? b : b < a ? a : a == b ? equal : bits<double>(kNanBits64);
}

template <Op O, class A>
PYCOMM_INLINE A apply(A a, A b) {
  if constexpr (O == Op::sum || O == Op::avg || O == Op::premul_sum) return add(a, b);
  if constexpr (O == Op::prod) return multiply(a, b);
  if constexpr (O == Op::min) return smaller(a, b);
  if constexpr (O == Op::max) return larger(a, b);
  if constexpr (O == Op::band) return A(a & b);
  if constexpr (O == Op::bor) return A(a | b);
  if constexpr (O == Op::bxor) return A(a ^ b);
}

PYCOMM_INLINE float scaled(float x, double factor) { return x * float(factor); }
PYCOMM_INLINE double scaled(double x, double factor) { return x * factor; }
PYCOMM_INLINE float divided(float x, double divisor) { return x / float(divisor); }
PYCOMM_INLINE double divided(double x, double divisor) { return x / divisor; }
template <class T>
PYCOMM_INLINE Complex<T> scaled(Complex<T> x, double factor) {
  return {scaled(x.re, factor), scaled(x.im, factor)};
}
template <class T>
PYCOMM_INLINE Complex<T> divided(Complex<T> x, double divisor) {
  return {divided(x.re, divisor), divided(x.im, divisor)};
}

// What happens to a value on its way into the accumulator (premul) and out of it (avg).
template <class El, Op O>
PYCOMM_INLINE typename El::A enter(typename El::S x, double factor) {
  if constexpr (O == Op::premul_sum) return scaled(El::load(x), factor);
  return El::load(x);
}
template <class El, Op O>
PYCOMM_INLINE typename El::S leave(typename El::A x, double inputs) {
  if constexpr (O == Op::avg) return El::store(divided(x, inputs));
  return El::store(x);
}

}  // namespace
}  // namespace pycomm
