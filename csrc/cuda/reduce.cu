// Reductions of any number of arrays in their order, into any number of outputs.
//
// 1. The accumulator of an element starts as the partial result given, or as the first input.
// 2. The inputs are added in their order; the next one is loaded while one is added.
// 3. The accumulator is written as a partial result, or rounded into every output.
//
// With one input or none these are also widen (only 3's partial), accumulate (the partial given and
// written) and finish (no inputs). Every element belongs to one thread, which has read all inputs
// at an element before it writes there: outputs may be inputs. No thread reads what another writes.
#include "cuda/reduce.h"

namespace pycomm::cuda {

constexpr int kReduceArrays = 128;

struct ReduceArgs {
  int64_t count;
  int64_t inputs_count;
  int64_t outputs_count;
  double divisor;  // of avg
  double factor;   // of premul_sum
  const void* partial_in;
  void* partial_out;
  const void* inputs[kReduceArrays];
  void* outputs[kReduceArrays];

  __device__ const void* input(int64_t k) const { return inputs[k]; }
  __device__ void* output(int64_t k) const { return outputs[k]; }
};

template <int D, int O>
__global__ void __launch_bounds__(kBlockThreads) reduce(ReduceArgs a) {
  using El = ElementOf<DType(D)>;
  constexpr int stored = kWidth<typename El::S>, wide = kWidth<typename El::A>;
  if (stored != wide && (a.partial_in || a.partial_out))
    walk<El, Op(O), wide>(a, whole_grid());
  else
    walk<El, Op(O), stored>(a, whole_grid());
}

}  // namespace pycomm::cuda
