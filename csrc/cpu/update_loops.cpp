// The loops of update.h, compiled once for each instruction level: PYCOMM_LEVEL names it.
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/denormals.h"
#include "cpu/elementwise.h"
#include "cpu/levels.h"
#include "elements.h"

namespace pycomm {
namespace {

// As torch's kernels do where the processor can: fused, with one rounding.
template <class A>
PYCOMM_INLINE A multiply_add(A a, A b, A c) {
#if defined(__FMA__) || defined(__aarch64__)
  if constexpr (sizeof(A) == sizeof(float)) return __builtin_fmaf(a, b, c);
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <class A>
PYCOMM_INLINE A root(A x) {
  if constexpr (sizeof(A) == sizeof(float)) return __builtin_sqrtf(x);
  return __builtin_sqrt(x);
}

template <DType D>
struct Update {
  using El = ElementOf<D>;
  using A = typename El::A;
  using S = Unaligned<typename El::S>;

  static PYCOMM_INLINE A load(const S& x) { return El::load(x.value); }

  // What a tensor of this type keeps of a result.
  static PYCOMM_INLINE A kept(A x) {
    if constexpr (sizeof(S) == sizeof(A)) return x;
    return El::load(El::store(x));
  }

  // torch's add(other, alpha=…): alpha is a number of the tensors' type. Elements that do not fill
  // its vectors are computed in that type, step by step.
  template <bool Tail>
  struct Add {
    explicit Add(double alpha) : alpha(kept(A(alpha))) {}
    PYCOMM_INLINE A operator()(A x, A other) const {
      if constexpr (Tail && sizeof(S) != sizeof(A)) return kept(kept(other * alpha) + x);
      return kept(multiply_add(other, alpha, x));
    }
    A alpha;
  };

  // torch's lerp_, of which there are two for accuracy.
  struct Lerp {
    explicit Lerp(double weight) : small(A(weight) < A(0.5)), factor(A(weight) - A(!small)) {}
    PYCOMM_INLINE A operator()(A from, A to) const {
      return kept(multiply_add(factor, to - from, small ? from : to));
    }
    bool small;
    A factor;
  };

  static void scale(void* gradient, size_t count, double factor) {
    KeepDenormals mode;
    auto* g = static_cast<S*>(gradient);
    const A by = A(factor);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) g[i].value = El::store(load(g[i]) * by);
  }

  // Always in the same order: of 16 sums every sixteenth square is added to, then by halves.
  static double squares(const void* gradient, size_t count) {
    KeepDenormals mode;
    auto* g = static_cast<const S*>(gradient);
    double sums[16] = {};
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
      for (size_t j = 0; j < 16; j++) sums[j] += double(load(g[i + j])) * double(load(g[i + j]));
    for (; i < count; i++) sums[i % 16] += double(load(g[i])) * double(load(g[i]));
    for (size_t half = 8; half; half /= 2)
      for (size_t j = 0; j < half; j++) sums[j] += sums[j + half];
    return sums[0];
  }

  static bool finite(const void* gradient, size_t count) {
    auto* g = static_cast<const S*>(gradient);
    int others = 0;
    for (size_t i = 0; i < count; i++) others |= !(load(g[i]) - load(g[i]) == 0);
    return !others;
  }

  template <bool Tail, bool Decays, bool Remembers, bool First, bool Nesterov>
  static void sgd_loop(S* p, const S* g, S* m, size_t count, const cpu::Sgd& s) {
    const A sign = s.maximize ? A(-1) : A(1), momentum = A(s.momentum);
    const Add<Tail> decay(s.weight_decay), take(1 - s.dampening), look(s.momentum), step(-s.lr);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) {
      const A x = load(p[i]);
      A d = sign * load(g[i]);
      if constexpr (Decays) d = decay(d, x);
      if constexpr (Remembers) {
        A b = d;
        if constexpr (!First) b = take(kept(load(m[i]) * momentum), d);
        m[i].value = El::store(b);
        d = Nesterov ? look(d, b) : b;
      }
      p[i].value = El::store(step(x, d));
    }
  }

  template <bool Tail, bool Decays>
  static void sgd_of(S* p, const S* g, S* m, size_t count, const cpu::Sgd& s) {
    if (!s.momentum) return sgd_loop<Tail, Decays, false, false, false>(p, g, m, count, s);
    if (s.first)
      return s.nesterov ? sgd_loop<Tail, Decays, true, true, true>(p, g, m, count, s)
                        : sgd_loop<Tail, Decays, true, true, false>(p, g, m, count, s);
    return s.nesterov ? sgd_loop<Tail, Decays, true, false, true>(p, g, m, count, s)
                      : sgd_loop<Tail, Decays, true, false, false>(p, g, m, count, s);
  }

  template <bool Tail>
  static void sgd(void* p, const void* g, void* momentum, size_t count, const cpu::Sgd& s) {
    KeepDenormals mode;
    (s.weight_decay ? sgd_of<Tail, true>
                    : sgd_of<Tail, false>)(static_cast<S*>(p), static_cast<const S*>(g),
                                           static_cast<S*>(momentum), count, s);
  }

  template <bool Tail, bool Decays>
  static void adam_loop(S* p, const S* g, S* m, S* v, size_t count, const cpu::Adam& s) {
    const A sign = s.maximize ? A(-1) : A(1), decay = A(s.decay), beta2 = A(s.beta2),
            keep = A(s.keep), correction = A(s.correction), eps = kept(A(s.eps)),
            step = -A(s.step_size);
    const Add<Tail> l2(s.l2);
    const Lerp lerp(s.weight);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) {
      const A x = kept(load(p[i]) * decay);
      A d = sign * load(g[i]);
      if constexpr (Decays) d = l2(d, x);
      const A mean = lerp(load(m[i]), d);
      const A square = kept(multiply_add(keep * d, d, kept(load(v[i]) * beta2)));
      const A bound = kept(kept(kept(root(square)) / correction) + eps);
      m[i].value = El::store(mean);
      v[i].value = El::store(square);
      p[i].value = El::store(x + step * mean / bound);
    }
  }

  template <bool Tail>
  static void adam(void* p, const void* g, void* mean, void* square, size_t count,
                   const cpu::Adam& s) {
    KeepDenormals mode;
    (s.l2 ? adam_loop<Tail, true>
          : adam_loop<Tail, false>)(static_cast<S*>(p), static_cast<const S*>(g),
                                    static_cast<S*>(mean), static_cast<S*>(square), count, s);
  }
};

// Stores that need not first read the line that they write; a fence must follow.
void stream(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<char*>(to);
  auto* source = static_cast<const char*>(from);
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0)
    for (; bytes >= 64; bytes -= 64, target += 64, source += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0)
    for (; bytes >= 32; bytes -= 32, target += 32, source += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#endif
  memcpy(target, source, bytes);
}

template <DType D>
constexpr cpu::UpdateLoops loops_of() {
  using U = Update<D>;
  constexpr bool narrow = sizeof(typename U::S) != sizeof(typename U::A);
  return {U::scale,
          U::squares,
          U::finite,
          {U::template sgd<false>, U::template sgd<narrow>},
          {U::template adam<false>, U::template adam<narrow>},
          stream};
}

constexpr cpu::UpdateLoops kNone{},
    kHalf = loops_of<DType::f16>(), kBFloat = loops_of<DType::bf16>(),
    kFloat = loops_of<DType::f32>(), kDouble = loops_of<DType::f64>();

}  // namespace

namespace cpu::PYCOMM_LEVEL {
const UpdateLoops& update_loops(int dtype) {
  switch (DType(dtype)) {
    case DType::f16:
      return kHalf;
    case DType::bf16:
      return kBFloat;
    case DType::f32:
      return kFloat;
    case DType::f64:
      return kDouble;
    default:
      return kNone;
  }
}
}  // namespace cpu::PYCOMM_LEVEL

}  // namespace pycomm
