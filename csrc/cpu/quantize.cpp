#include "cpu/quantize.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "block_scaled.h"
#include "cpu/denormals.h"

namespace pycomm::cpu {
namespace {

template <DType D, DType Q>
struct Block {
  using El = ElementOf<D>;
  using Code = Quantum<Q>;

  static void quantize(const void* from, size_t count, void* values, float* scale) {
    auto* x = static_cast<const typename El::S*>(from);
    auto* q = static_cast<typename Code::S*>(values);
    uint32_t amax = 0;
    for (size_t i = 0; i < count; i++) amax = std::max(amax, magnitude(El::load(x[i])));
    *scale = scale_of(amax, Code::largest);
    const float inverse = inverse_of(*scale);
    for (size_t i = 0; i < count; i++) q[i] = Code::encode(El::load(x[i]) * inverse);
  }

  static void add(const void* values, float scale, size_t count, bool first, float* sums) {
    auto* q = static_cast<const typename Code::S*>(values);
    for (size_t i = 0; i < count; i++) {
      const float x = Code::decode(q[i]) * scale;
      sums[i] = first ? x : sums[i] + x;
    }
  }

  static void finish(const float* sums, size_t count, double divisor, void* to) {
    auto* output = static_cast<typename El::S*>(to);
    for (size_t i = 0; i < count; i++) output[i] = El::store(mean_of(sums[i], divisor));
  }
};

struct Functions {
  void (*quantize)(const void*, size_t, void*, float*);
  void (*add)(const void*, float, size_t, bool, float*);
  void (*finish)(const float*, size_t, double, void*);
  size_t item_bytes;
};

template <DType D, DType Q>
constexpr Functions functions() {
  using B = Block<D, Q>;
  return {B::quantize, B::add, B::finish, sizeof(typename B::El::S)};
}

template <DType Q>
Functions functions_on(int dtype) {
  if (dtype == int(DType::f32)) return functions<DType::f32, Q>();
  if (dtype == int(DType::bf16)) return functions<DType::bf16, Q>();
  if (dtype == int(DType::f16)) return functions<DType::f16, Q>();
  return {};
}

Functions functions(Quantisation q) {
  if (q.stored == int(DType::i8)) return functions_on<DType::i8>(q.dtype);
  if (q.stored == int(DType::e4m3)) return functions_on<DType::e4m3>(q.dtype);
  if (q.stored == int(DType::e5m2)) return functions_on<DType::e5m2>(q.dtype);
  return {};
}

template <class T>
T* offset(T* array, size_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(array) + bytes;
}

}  // namespace

bool exists(Quantisation q) { return functions(q).quantize; }

void quantize(Quantisation q, const void* x, size_t count, void* values, float* scales) {
  KeepDenormals mode;
  const Functions block = functions(q);
  for (size_t i = 0; i < count; i += kQuantBlock)
    block.quantize(offset(x, i * block.item_bytes), std::min<size_t>(kQuantBlock, count - i),
                   offset(values, i), scales + i / kQuantBlock);
}

void dequantize_reduce(Quantisation q, const void* const* values, const float* const* scales,
                       size_t inputs, size_t count, double divisor, void* output) {
  KeepDenormals mode;
  const Functions block = functions(q);
  for (size_t i = 0; i < count; i += kQuantBlock) {
    std::array<float, kQuantBlock> sums;
    const size_t n = std::min<size_t>(kQuantBlock, count - i);
    for (size_t k = 0; k < inputs; k++)
      block.add(offset(values[k], i), scales[k][i / kQuantBlock], n, k == 0, sums.data());
    block.finish(sums.data(), n, divisor, offset(output, i * block.item_bytes));
  }
}

}  // namespace pycomm::cpu
