// Values of the float types that updates and dropout are for, whose type is known at run time.
#pragma once

#include <cstring>

#include "elements.h"
#include "scenario.h"

namespace pycomm::test {
namespace {

constexpr DType kFloats[] = {DType::f16, DType::bf16, DType::f32, DType::f64};

// Calls use(ElementOf<D>) for the type's D.
template <class Use>
void with_element(DType dtype, Use use) {
  if (dtype == DType::f16) use(ElementOf<DType::f16>{});
  if (dtype == DType::bf16) use(ElementOf<DType::bf16>{});
  if (dtype == DType::f32) use(ElementOf<DType::f32>{});
  if (dtype == DType::f64) use(ElementOf<DType::f64>{});
}

template <class El>
typename El::A load(const char* from, size_t i, El) {
  typename El::S x;
  std::memcpy(&x, from + i * sizeof(x), sizeof(x));
  return El::load(x);
}

template <class El>
void store(char* to, size_t i, typename El::A value, El) {
  const typename El::S x = El::store(value);
  std::memcpy(to + i * sizeof(x), &x, sizeof(x));
}

// Writes numbers of [-1, 1).
inline void fill(char* to, size_t count, DType dtype, Random random) {
  with_element(dtype, [&]<class El>(El element) {
    for (size_t i = 0; i < count; i++)
      store(to, i, typename El::A(double(int64_t(random.next())) * 0x1p-63), element);
  });
}

}  // namespace
}  // namespace pycomm::test
