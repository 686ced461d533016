// Chooses the loops by processor, and walks over arrays in blocks that stay in the first-level
// cache.
#include "cpu/reduce.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/denormals.h"
#include "cpu/levels.h"

namespace pycomm::cpu {
namespace {

struct Level {
  const char* name;
  const Loops& (*loops)(int dtype, int op);
  const UpdateLoops& (*update_loops)(int dtype);
  const DropoutLoops& (*dropout_loops)(int dtype);
  bool available;
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
const Level kLevels[] = {
    {"avx512", avx512::loops, avx512::update_loops, avx512::dropout_loops, has_avx512()},
    {"avx2", avx2::loops, avx2::update_loops, avx2::dropout_loops, has_avx2()},
    {"plain", plain::loops, plain::update_loops, plain::dropout_loops, true},
};
#else
const Level kLevels[] = {{"plain", plain::loops, plain::update_loops, plain::dropout_loops, true}};
#endif

const Level* best() {
  return std::find_if(std::begin(kLevels), std::end(kLevels),
                      [](const Level& l) { return l.available; });
}

const Level* current = best();

constexpr size_t kItemBytes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1, 8, 16};
constexpr size_t kPartialBytes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 4, 4, 4, 8, 4, 4, 8, 16};
constexpr size_t kBlockBytes = 8192;

// A user's operation on one block of at most kBlockBytes of the accumulator's type.
void fold_block(const Loops& loop, void* partial, const void* x, size_t count, const Reduction& r) {
  alignas(64) char wide[kBlockBytes];
  loop.widen(x, wide, count, r);
  KeepDenormals mode;
  r.fold(partial, wide, count);
}

// One block: all inputs are read before the first output is written, so outputs may be inputs.
void reduce_block(const Loops& loop, const void* const* in, size_t at, void* out, size_t count,
                  const Reduction& r) {
  alignas(64) char partial[kBlockBytes];
  auto input = [&](int k) { return static_cast<const char*>(in[k]) + at; };
  if (r.fold) {
    loop.widen(input(0), partial, count, r);
    for (int k = 1; k < r.inputs; k++) fold_block(loop, partial, input(k), count, r);
    return loop.finish(partial, out, count, r);
  }
  if (r.inputs == 2) return loop.only_two(input(0), input(1), out, count, r);
  if (r.inputs == 1) {
    loop.widen(input(0), partial, count, r);
    return loop.finish(partial, out, count, r);
  }
  loop.first_two(input(0), input(1), partial, count, r);
  for (int k = 2; k < r.inputs - 1; k++) loop.accumulate(partial, input(k), count, r);
  loop.last(partial, input(r.inputs - 1), out, count, r);
}

}  // namespace

const Loops& loops(const Reduction& r) { return current->loops(r.dtype, r.op); }
const UpdateLoops& update_loops(int dtype) { return current->update_loops(dtype); }
const DropoutLoops& dropout_loops(int dtype) { return current->dropout_loops(dtype); }

size_t item_bytes(int dtype) { return kItemBytes[dtype]; }
size_t partial_bytes(int dtype) { return kPartialBytes[dtype]; }
const char* level() { return current->name; }

void use_level(const char* name) {
  for (const Level& l : kLevels)
    if (l.available && !std::strcmp(l.name, name)) {
      current = &l;
      return;
    }
  throw std::invalid_argument(std::string("instruction level ") + name +
                              " cannot run on this processor");
}

void reduce(const void* const* inputs, void* const* outputs, int outputs_count, size_t count,
            const Reduction& r) {
  const Loops& loop = loops(r);
  const size_t item = kItemBytes[r.dtype], block = kBlockBytes / kPartialBytes[r.dtype];
  for (size_t i = 0; i < count; i += block) {
    const size_t n = std::min(block, count - i), at = i * item;
    auto output = [&](int k) { return static_cast<char*>(outputs[k]) + at; };
    reduce_block(loop, inputs, at, output(0), n, r);
    for (int k = 1; k < outputs_count; k++) std::memcpy(output(k), output(0), n * item);
  }
}

void accumulate(void* partial, const void* x, size_t count, const Reduction& r) {
  const Loops& loop = loops(r);
  if (!r.fold) return loop.accumulate(partial, x, count, r);
  const size_t item = kItemBytes[r.dtype], wide = kPartialBytes[r.dtype],
               block = kBlockBytes / wide;
  for (size_t i = 0; i < count; i += block)
    fold_block(loop, static_cast<char*>(partial) + i * wide, static_cast<const char*>(x) + i * item,
               std::min(block, count - i), r);
}

}  // namespace pycomm::cpu
