// Keyed dropout, by addresses.
#include "bindings.h"
#include "cpu/dropout.h"
#include "philox.h"

namespace pycomm {
namespace {

void dropout(uintptr_t x, uintptr_t out, int dtype, uint32_t first_sample, size_t samples,
             size_t runs, size_t length, uint64_t first, uint64_t stride, uint64_t key,
             uint64_t step, uint32_t threshold, double scale) {
  if (dtype < 0 || dtype > 16 || !cpu::dropout_loops(dtype).drop)
    throw std::invalid_argument("there is no dropout of this dtype");
  nb::gil_scoped_release release;
  cpu::dropout(at<void>(x), at<void>(out), dtype,
               {first_sample, samples, runs, length, first, stride}, {key, step, threshold, scale});
}

std::vector<uint32_t> philox_of(const std::vector<uint32_t>& counter, uint64_t key) {
  if (counter.size() != 4) throw std::invalid_argument("a counter has 4 words");
  const Words4 four = philox({{counter[0], counter[1], counter[2], counter[3]}}, key);
  return {four.at, four.at + 4};
}

}  // namespace

void bind_dropout(nb::module_& m) {
  m.def("dropout", &dropout, "address"_a, "out"_a, "dtype"_a, "first_sample"_a, "samples"_a,
        "runs"_a, "length"_a, "first"_a, "stride"_a, "key"_a, "step"_a, "threshold"_a, "scale"_a);
  m.def("philox", &philox_of, "counter"_a, "key"_a, "Philox4x32-10 of four words; for tests.");
}

}  // namespace pycomm
