// What the short ways read of Python arrays, without Python code.
#pragma once

#include <cstddef>

#include "bindings.h"
#include "cpu/reduce.h"

namespace pycomm {

// A contiguous NumPy array or torch CPU tensor. Nothing keeps it alive but the caller.
struct Array {
  static constexpr int kMostDimensions = 64;
  char* data;
  size_t bytes;
  int dtype;
  bool tensor;
  int dimensions;
  size_t lengths[kMostDimensions];
  size_t count() const { return bytes / cpu::item_bytes(dtype); }
};

// Whether x is such an array, and writable if it is a result. Leaves out a tensor's lengths.
bool array_of(nb::handle x, bool result, Array&);
bool shaped_array_of(nb::handle x, bool result, Array&);

// The code of a built-in operation, if it exists on the dtype; -1 otherwise.
int op_of(nb::handle op, int dtype);

void bind_arrays(nb::module_&);

}  // namespace pycomm
