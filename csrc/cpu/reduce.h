// Reductions over arrays in memory: which loop runs is chosen once, by what the processor can do.
#pragma once

#include <cstddef>

namespace pycomm::cpu {

// A user's operation on elements of the accumulator's type: partial[i] = f(partial[i], x[i]).
using Fold = void (*)(void* partial, const void* x, size_t count);

constexpr int kBuiltinOps = 9;  // codes below are loops; this one is the user's fold

// One reduction: element type and operation by their codes in elements.h, the factor of premul_sum,
// how many inputs there are in all (avg divides by it), and the fold where the operation is a
// user's.
struct Reduction {
  int dtype;
  int op;
  double factor = 1.0;
  int inputs = 1;
  Fold fold = nullptr;
};

// The loops over one block. Partials have the accumulator's type. A user's operation has only widen
// and finish.
struct Loops {
  void (*widen)(const void* x, void* partial, size_t count, const Reduction&);
  void (*accumulate)(void* partial, const void* x, size_t count, const Reduction&);
  void (*finish)(const void* partial, void* out, size_t count, const Reduction&);
  void (*first_two)(const void* a, const void* b, void* partial, size_t count, const Reduction&);
  void (*only_two)(const void* a, const void* b, void* out, size_t count, const Reduction&);
  void (*last)(const void* partial, const void* x, void* out, size_t count, const Reduction&);
};

// Null pointers where the operation does not exist on the type.
const Loops& loops(const Reduction&);

size_t item_bytes(int dtype);
size_t partial_bytes(int dtype);

// Adds inputs[0…n-1] in this order, element by element, and writes the result to each of the m
// outputs, which may be any of the inputs.
void reduce(const void* const* inputs, void* const* outputs, int outputs_count, size_t count,
            const Reduction&);

// partial = partial op widened(x), for any number of elements.
void accumulate(void* partial, const void* x, size_t count, const Reduction&);

const char* level();  // the instruction level in use: "plain", "avx2", "avx512"
void use_level(
    const char* name);  // for tests; throws std::invalid_argument when it cannot run here

}  // namespace pycomm::cpu
