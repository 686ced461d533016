// Block-scaled quantisation, by addresses.
#include "bindings.h"
#include "cpu/quantize.h"

namespace pycomm {
namespace {

cpu::Quantisation quantisation(int dtype, int stored) {
  const cpu::Quantisation q{dtype, stored};
  if (!cpu::exists(q)) throw std::invalid_argument("there is no such quantisation");
  return q;
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize",
        [](uintptr_t x, size_t count, int dtype, int stored, uintptr_t values, uintptr_t scales) {
          const auto q = quantisation(dtype, stored);
          nb::gil_scoped_release release;
          cpu::quantize(q, at<void>(x), count, at<void>(values), at<float>(scales));
        });
  m.def("dequantize_reduce",
        [](const std::vector<uintptr_t>& values, const std::vector<uintptr_t>& scales, size_t count,
           int dtype, int stored, double divisor, uintptr_t output) {
          const auto q = quantisation(dtype, stored);
          if (values.empty() || values.size() != scales.size())
            throw std::invalid_argument("every input needs values and scales");
          nb::gil_scoped_release release;
          cpu::dequantize_reduce(q, reinterpret_cast<const void* const*>(values.data()),
                                 reinterpret_cast<const float* const*>(scales.data()),
                                 values.size(), count, divisor, at<void>(output));
        });
}

}  // namespace pycomm
