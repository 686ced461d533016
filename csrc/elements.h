// Element types and reduce operations: one definition for host and device.
//
// Everything lives in an unnamed namespace: the file is compiled at several instruction levels into
// one library, and a function compiled for one level must never be picked by the linker for
// another.
#pragma once

#include "floats.h"

namespace pycomm {
namespace {

// ---- complex

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

// `user` is a function that is no loop of ours: only the way into the accumulator and out of it is.
enum class Op : int { sum, avg, prod, min, max, band, bor, bxor, premul_sum, user };
constexpr int kOps = 10;

PYCOMM_INLINE constexpr bool exists(Op op, Family family) {
  bool bitwise = op == Op::band || op == Op::bor || op == Op::bxor,
       order = op == Op::min || op == Op::max;
  if (op == Op::user) return true;
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
template <class T, size_t Bytes = sizeof(T)>
struct Modular {
  using U = uint32_t;
};
template <class T>
struct Modular<T, 8> {
  using U = uint64_t;
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
