// Reductions of any number of arrays in their order, into any number of outputs.
//
// 1. The accumulator of an element starts as the partial result given, or as the first input.
// 2. The inputs are added in their order; the next one is loaded while one is added.
// 3. The accumulator is written as a partial result, or rounded into every output.
//
// With one input or none these are also widen (only 3's partial), accumulate (the partial given and
// written) and finish (no inputs). Every element belongs to one thread, which has read all inputs
// at an element before it writes there: outputs may be inputs. No thread reads what another writes.
#include "cuda/grid.h"

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
};

namespace {

template <class El>
constexpr int kWidth = kVectorBytes / int(sizeof(typename El::S));

// Vectors a thread takes at a time: 64 bytes of accumulators, but at least two loads in flight.
template <class El>
constexpr int kEach = kWidth<El> * sizeof(typename El::A) <= 16 ? 4 : 2;

template <class El, Op O, bool Vector>
struct Tile {
  static constexpr int N = Vector ? kWidth<El> : 1, each = kEach<El>;
  using Stored = Run<typename El::S, N>;
  using Sums = Run<typename El::A, N>;

  const ReduceArgs& a;
  int64_t at[each];
  bool mine[each];

  __device__ Tile(const ReduceArgs& args, const Split<kWidth<El>>& split, int64_t first,
                  int64_t items)
      : a(args) {
#pragma unroll
    for (int u = 0; u < each; u++) {
      int64_t item = first + u * kBlockThreads;
      mine[u] = item < items;
      at[u] = Vector ? split.vector(item) : split.single(item);
    }
  }

  template <class R>
  __device__ void load(const void* array, R (&runs)[each]) const {
#pragma unroll
    for (int u = 0; u < each; u++)
      if (mine[u]) load_run<Vector>(array, at[u], runs[u]);
  }

  template <class R>
  __device__ void store(void* array, const R (&runs)[each]) const {
#pragma unroll
    for (int u = 0; u < each; u++)
      if (mine[u]) store_run<Vector>(array, at[u], runs[u]);
  }

  __device__ void add(Sums (&sums)[each], const Stored (&x)[each], bool first) const {
#pragma unroll
    for (int u = 0; u < each; u++)
#pragma unroll
      for (int i = 0; i < N; i++) {
        auto value = enter<El, O>(x[u].at[i], a.factor);
        sums[u].at[i] = first ? value : apply<O>(sums[u].at[i], value);
      }
  }

  __device__ void add_inputs(Sums (&sums)[each]) const {
    Stored next[each] = {};
    if (a.inputs_count > 0) load(a.inputs[0], next);
    for (int64_t k = 0; k < a.inputs_count; k++) {
      Stored now[each];
#pragma unroll
      for (int u = 0; u < each; u++) now[u] = next[u];
      if (k + 1 < a.inputs_count) load(a.inputs[k + 1], next);
      add(sums, now, k == 0 && !a.partial_in);
    }
  }

  __device__ void round_into_outputs(const Sums (&sums)[each]) const {
    Stored x[each];
#pragma unroll
    for (int u = 0; u < each; u++)
#pragma unroll
      for (int i = 0; i < N; i++) x[u].at[i] = leave<El, O>(sums[u].at[i], a.divisor);
    for (int64_t k = 0; k < a.outputs_count; k++) store(a.outputs[k], x);
  }

  __device__ void run() const {
    Sums sums[each] = {};
    if (a.partial_in) load(a.partial_in, sums);
    add_inputs(sums);
    if (a.partial_out) store(a.partial_out, sums);
    if (a.outputs_count > 0) round_into_outputs(sums);
  }
};

template <class El>
__device__ Split<kWidth<El>> split_of(const ReduceArgs& a) {
  using S = typename El::S;
  using A = typename El::A;
  const int64_t head = head_of<S>(a.inputs_count > 0 ? a.inputs[0] : a.outputs[0]);
  bool common = (!a.partial_in || starts_at<A>(a.partial_in, head)) &&
                (!a.partial_out || starts_at<A>(a.partial_out, head));
  for (int64_t k = 0; k < a.inputs_count; k++) common = common && starts_at<S>(a.inputs[k], head);
  for (int64_t k = 0; k < a.outputs_count; k++) common = common && starts_at<S>(a.outputs[k], head);
  return split<kWidth<El>>(a.count, head, common);
}

}  // namespace

template <int D, int O>
__global__ void __launch_bounds__(kBlockThreads) reduce(ReduceArgs a) {
  using El = ElementOf<DType(D)>;
  const auto split = split_of<El>(a);
  deal<kEach<El>>(split.vectors, [&](int64_t first) {
    Tile<El, Op(O), true>(a, split, first, split.vectors).run();
  });
  deal<kEach<El>>(split.singles(), [&](int64_t first) {
    Tile<El, Op(O), false>(a, split, first, split.singles()).run();
  });
}

}  // namespace pycomm::cuda
