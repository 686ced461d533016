// Block-scaled quantisation of arrays in memory; the format is csrc/block_scaled.h's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycomm::cpu {

// Codes of element types as in elements.h: `dtype` of the array, `stored` of the values.
struct Quantisation {
  int dtype;
  int stored;
};

// Whether there is such a quantisation; the functions below rely on it.
bool exists(Quantisation);

// Writes `count` values, and one scale for every kQuantBlock of them.
void quantize(Quantisation, const void* x, size_t count, void* values, float* scales);

// Adds n quantised inputs in their order, divides by the divisor and rounds into the output.
void dequantize_reduce(Quantisation, const void* const* values, const float* const* scales,
                       size_t inputs, size_t count, double divisor, void* output);

}  // namespace pycomm::cpu
