// Dropout whose masks are a function of (key, step, sample, element): the bits of
// csrc/cpu/dropout.h.
//
// A thread takes four consecutive elements of a run, which have the words of one counter or two.
#include "cuda/grid.h"
#include "philox.h"

namespace pycomm::cuda {

struct DropoutArgs {
  const void* source;
  void* target;
  uint64_t key, step;
  double scale;
  uint64_t first, stride;
  int64_t samples, runs, length;
  uint32_t first_sample, threshold;
};

namespace {

constexpr int64_t kTaken = 4;

PYCOMM_INLINE Words4 words_of(const DropoutArgs& a, uint32_t sample, uint32_t block) {
  return philox(mask_counter(a.step, sample, block), a.key);
}

template <class El>
PYCOMM_INLINE typename El::S kept_or_zero(typename El::S x, uint32_t word, const DropoutArgs& a) {
  using A = typename El::A;
  return El::store(word < a.threshold ? A(0) : El::load(x) * A(a.scale));
}

// Elements i … i + 3 of run `run`, which has number `run` among the runs of all samples.
template <class El>
__device__ void drop_four(const DropoutArgs& a, int64_t run, int64_t i) {
  using S = typename El::S;
  const uint32_t sample = a.first_sample + uint32_t(run / a.runs);
  const uint64_t element = a.first + uint64_t(run % a.runs) * a.stride + uint64_t(i);
  const S* from = static_cast<const S*>(a.source) + run * a.length + i;
  S* to = static_cast<S*>(a.target) + run * a.length + i;
  const int count = a.length - i < kTaken ? int(a.length - i) : int(kTaken);
  Words4 words = words_of(a, sample, uint32_t(element / 4));
  int word = int(element % 4);
  for (int k = 0; k < count; k++, word++) {
    if (word == 4) {
      words = words_of(a, sample, uint32_t(element / 4) + 1);
      word = 0;
    }
    to[k] = kept_or_zero<El>(from[k], words.at[word], a);
  }
}

}  // namespace

template <int D>
__global__ void __launch_bounds__(kBlockThreads) keyed_dropout(DropoutArgs a) {
  const int64_t fours = (a.length + kTaken - 1) / kTaken;
  deal<1>(a.samples * a.runs * fours, [&](int64_t item) {
    drop_four<ElementOf<DType(D)>>(a, item / fours, item % fours * kTaken);
  });
}

}  // namespace pycomm::cuda
