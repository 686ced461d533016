// Dropout whose masks are a function of (key, step, sample, element): see csrc/philox.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycomm::cpu {

struct Mask {
  uint64_t key, step;
  uint32_t threshold;  // an element whose word is below it is dropped
  double scale;        // of what is kept
};

// Where the elements of an array lie in the whole samples that it is a part of: each sample is
// `runs` of `length` consecutive elements, the first at `first`, `stride` from one to the next.
struct Samples {
  uint32_t first_sample;
  size_t count, runs, length;
  uint64_t first, stride;
};

// The loops over consecutive elements, from `element` on, of one sample.
struct DropoutLoops {
  void (*drop)(const void* x, void* out, size_t count, uint64_t element, uint32_t sample,
               const Mask&);
};

// Null for types other than float16, bfloat16, float32 and float64.
const DropoutLoops& dropout_loops(int dtype);

// `out` may be `x`.
void dropout(const void* x, void* out, int dtype, const Samples&, const Mask&);

}  // namespace pycomm::cpu
