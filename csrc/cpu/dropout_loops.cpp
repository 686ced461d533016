// The loops of dropout.h, compiled once for each instruction level: PYCOMM_LEVEL names it.
#include <type_traits>

#include "cpu/denormals.h"
#include "cpu/elementwise.h"
#include "cpu/levels.h"
#include "elements.h"
#include "philox.h"

namespace pycomm {
namespace {

constexpr size_t kBlocks = 256;  // whose words are drawn at a time
constexpr int kLanes = 8;        // counters that go through the rounds side by side

// Writes the words of `blocks` blocks, and of those up to a multiple of kLanes.
[[gnu::noinline]] void draw(uint64_t key, Words4 first, size_t blocks, uint32_t* words) {
  for (size_t b = 0; b < blocks; b += kLanes) {
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int l = 0; l < kLanes; l++) {
      c0[l] = first.at[0] + uint32_t(b) + uint32_t(l);
      c1[l] = first.at[1];
      c2[l] = first.at[2];
      c3[l] = first.at[3];
    }
    uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
    for (int round = 0; round < kPhiloxRounds; round++) {
      for (int l = 0; l < kLanes; l++) philox_round(c0[l], c1[l], c2[l], c3[l], low, high);
      low += kPhiloxLow;
      high += kPhiloxHigh;
    }
    for (int l = 0; l < kLanes; l++) {
      words[4 * (b + l)] = c0[l];
      words[4 * (b + l) + 1] = c1[l];
      words[4 * (b + l) + 2] = c2[l];
      words[4 * (b + l) + 3] = c3[l];
    }
  }
}

template <DType D>
struct Dropout {
  using El = ElementOf<D>;
  using A = typename El::A;
  using S = Unaligned<typename El::S>;
  using Bits = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;

  static void keep(const S* x, S* out, size_t count, const uint32_t* words, const cpu::Mask& mask) {
    const A scale = A(mask.scale);
    const uint32_t threshold = mask.threshold;
    PYCOMM_ELEMENTWISE
    for (size_t i = 0; i < count; i++) {
      const A kept = El::load(x[i].value) * scale;
      const Bits all = Bits(0) - Bits(words[i] >= threshold);
      out[i].value = El::store(bits<A>(Bits(bits<Bits>(kept) & all)));
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
      const Words4 first = mask_counter(mask.step, sample, uint32_t((element + i) / 4));
      draw(mask.key, first, (skipped + n + 3) / 4, words);
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
