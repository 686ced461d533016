#include "cpu/dropout.h"

#include "cpu/reduce.h"

namespace pycomm::cpu {

void dropout(const void* x, void* out, int dtype, const Samples& samples, const Mask& mask) {
  const DropoutLoops& loops = dropout_loops(dtype);
  const size_t bytes = samples.length * item_bytes(dtype);
  auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(out);
  for (size_t s = 0; s < samples.count; s++)
    for (size_t r = 0; r < samples.runs; r++, from += bytes, to += bytes)
      loops.drop(from, to, samples.length, samples.first + r * samples.stride,
                 samples.first_sample + uint32_t(s), mask);
}

}  // namespace pycomm::cpu
