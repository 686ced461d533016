// The loops of dropout.h, compiled once for each instruction level: PYCOMM_LEVEL names it.
#include "cpu/denormals.h"
#include "cpu/elementwise.h"
#include "cpu/levels.h"
#include "elements.h"
#include "philox.h"

namespace pycomm {
namespace {

constexpr size_t kBlocks = 256;  // whose words are drawn at a time

void draw(const cpu::Mask& mask, uint32_t sample, uint32_t block, size_t blocks, uint32_t* words) {
  PYCOMM_ELEMENTWISE
  for (size_t b = 0; b < blocks; b++) {
    const Words4 four = mask_words(mask.key, mask.step, sample, block + uint32_t(b));
    words[4 * b] = four.at[0];
    words[4 * b + 1] = four.at[1];
    words[4 * b + 2] = four.at[2];
    words[4 * b + 3] = four.at[3];
  }
}

template <DType D>
struct Dropout {
  using El = ElementOf<D>;
  using A = typename El::A;
  using S = Unaligned<typename El::S>;

  static void keep(const S* x, S* out, size_t count, const uint32_t* words, const cpu::Mask& mask) {
    const A scale = A(mask.scale);
    const uint32_t threshold = mask.threshold;
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) {
      const A kept = El::load(x[i].value) * scale;
      out[i].value = El::store(words[i] < threshold ? A(0) : kept);
    }
  }

  static void drop(const void* x, void* out, size_t count, uint64_t element, uint32_t sample,
                   const cpu::Mask& mask) {
    KeepDenormals mode;
    alignas(64) uint32_t words[4 * kBlocks];
    auto* from = static_cast<const S*>(x);
    auto* to = static_cast<S*>(out);
    for (size_t i = 0, n; i < count; i += n) {
      const size_t skipped = (element + i) % 4, room = 4 * kBlocks - skipped;
      n = count - i < room ? count - i : room;
      draw(mask, sample, uint32_t((element + i) / 4), (skipped + n + 3) / 4, words);
      keep(from + i, to + i, n, words + skipped, mask);
    }
  }
};

constexpr cpu::DropoutLoops kNone{}, kHalf{Dropout<DType::f16>::drop},
    kBFloat{Dropout<DType::bf16>::drop}, kFloat{Dropout<DType::f32>::drop},
    kDouble{Dropout<DType::f64>::drop};

}  // namespace

namespace cpu::PYCOMM_LEVEL {
const DropoutLoops& dropout_loops(int dtype) {
  switch (DType(dtype)) {
    case DType::f16:
      return kHalf;
    case DType::bf16:
      return kBFloat;
    case DType::f32:
      return kFloat;
    case DType::f64:
      return kDouble;
    default:
      return kNone;
  }
}
}  // namespace cpu::PYCOMM_LEVEL

}  // namespace pycomm
