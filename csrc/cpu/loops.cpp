// The loops of reduce.h, compiled once for each instruction level: PYCOMM_LEVEL names it.
#include "cpu/denormals.h"
#include "cpu/elementwise.h"
#include "cpu/levels.h"
#include "elements.h"

namespace pycomm {
namespace {

template <class El, Op O>
struct Loop {
  using S = Unaligned<typename El::S>;
  using A = Unaligned<typename El::A>;

  static void widen(const void* x, void* partial, size_t count, const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* in = static_cast<const S*>(x);
    auto* acc = static_cast<A*>(partial);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) acc[i].value = enter<El, O>(in[i].value, r.factor);
  }

  static void accumulate(void* partial, const void* x, size_t count, const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* acc = static_cast<A*>(partial);
    auto* in = static_cast<const S*>(x);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++)
      acc[i].value = apply<O>(acc[i].value, enter<El, O>(in[i].value, r.factor));
  }

  static void finish(const void* partial, void* out, size_t count, const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* acc = static_cast<const A*>(partial);
    auto* to = static_cast<S*>(out);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) to[i].value = leave<El, O>(acc[i].value, r.inputs);
  }

  static void first_two(const void* a, const void* b, void* partial, size_t count,
                        const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* left = static_cast<const S*>(a);
    auto* right = static_cast<const S*>(b);
    auto* acc = static_cast<A*>(partial);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++)
      acc[i].value =
          apply<O>(enter<El, O>(left[i].value, r.factor), enter<El, O>(right[i].value, r.factor));
  }

  static void only_two(const void* a, const void* b, void* out, size_t count,
                       const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* left = static_cast<const S*>(a);
    auto* right = static_cast<const S*>(b);
    auto* to = static_cast<S*>(out);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++)
      to[i].value = leave<El, O>(
          apply<O>(enter<El, O>(left[i].value, r.factor), enter<El, O>(right[i].value, r.factor)),
          r.inputs);
  }

  static void last(const void* partial, const void* x, void* out, size_t count,
                   const cpu::Reduction& r) {
    KeepDenormals mode;
    auto* acc = static_cast<const A*>(partial);
    auto* in = static_cast<const S*>(x);
    auto* to = static_cast<S*>(out);
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++)
      to[i].value =
          leave<El, O>(apply<O>(acc[i].value, enter<El, O>(in[i].value, r.factor)), r.inputs);
  }
};

template <DType D, Op O>
constexpr cpu::Loops loops_of() {
  using El = ElementOf<D>;
  using L = Loop<El, O>;
  if constexpr (O == Op::user) {
    return {L::widen, nullptr, L::finish, nullptr, nullptr, nullptr};
  } else if constexpr (exists(O, El::family)) {
    return {L::widen, L::accumulate, L::finish, L::first_two, L::only_two, L::last};
  } else {
    return {};
  }
}

template <int... Codes>
struct Table {
  cpu::Loops entry[sizeof...(Codes)] = {loops_of<DType(Codes / kOps), Op(Codes % kOps)>()...};
};

template <int... Codes>
constexpr Table<Codes...> make_table(std::integer_sequence<int, Codes...>) {
  return {};
}

constexpr auto table = make_table(std::make_integer_sequence<int, kDTypes * kOps>());

}  // namespace

namespace cpu::PYCOMM_LEVEL {
const Loops& loops(int dtype, int op) { return table.entry[dtype * kOps + op]; }
}  // namespace cpu::PYCOMM_LEVEL

}  // namespace pycomm
