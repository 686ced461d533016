// The walk of a reduction: one thread adds an element of all inputs, in their order, and writes it
// into all outputs.
//
// Arrays, a type of the caller's, says what is walked over:
//   count, inputs_count, outputs_count   elements, and arrays
//   divisor, factor                      of avg, and of premul_sum
//   partial_in, partial_out              accumulators to begin with and to leave, or null
//   input(k), output(k)                  the arrays
#pragma once

#include "cuda/grid.h"

namespace pycomm::cuda {
namespace {

// Tiles of vectors of Width elements, or of single elements. Each thread takes 64 bytes of
// accumulators, but at least two loads at a time.
template <class El, Op O, int Width, bool Vector, class Arrays>
struct Tile {
  using S = typename El::S;
  using A = typename El::A;
  static constexpr int N = Vector ? Width : 1, each = Width * sizeof(A) <= 16 ? 4 : 2;
  using Stored = Run<S, N>;
  using Sums = Run<A, N>;

  const Arrays& a;
  int64_t at[each];
  bool mine[each];

  __device__ Tile(const Arrays& args, const Split<Width>& split, int64_t first, int64_t items)
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

  // In two sets of registers by turns: copied from one to the other, an input would have to arrive
  // before the next one is asked for.
  __device__ void add_inputs(Sums (&sums)[each]) const {
    Stored even[each] = {}, odd[each] = {};
    if (a.inputs_count > 0) load(a.input(0), even);
    for (int64_t k = 0; k < a.inputs_count; k += 2) {
      const bool another = k + 1 < a.inputs_count;
      if (another) load(a.input(k + 1), odd);
      add(sums, even, k == 0 && !a.partial_in);
      if (k + 2 < a.inputs_count) load(a.input(k + 2), even);
      if (another) add(sums, odd, false);
    }
  }

  __device__ void round_into_outputs(const Sums (&sums)[each]) const {
    Stored x[each];
#pragma unroll
    for (int u = 0; u < each; u++)
#pragma unroll
      for (int i = 0; i < N; i++) x[u].at[i] = leave<El, O>(sums[u].at[i], a.divisor);
    for (int64_t k = 0; k < a.outputs_count; k++) store(a.output(k), x);
  }

  __device__ void run() const {
    Sums sums[each] = {};
    if (a.partial_in) load(a.partial_in, sums);
    add_inputs(sums);
    if (a.partial_out) store(a.partial_out, sums);
    if (a.outputs_count > 0) round_into_outputs(sums);
  }
};

template <class S, class A, int Width, class Arrays>
__device__ Split<Width> split_of(const Arrays& a) {
  constexpr int bytes = Width * int(sizeof(S));
  static_assert(bytes <= 16, "a vector of inputs is one word");
  const void* widest = a.partial_in ? a.partial_in : a.partial_out;
  const int64_t head = widest ? head_of<A>(widest) : head_of<S>(a.output(0));
  bool common = (!a.partial_in || starts_at<A>(a.partial_in, head)) &&
                (!a.partial_out || starts_at<A>(a.partial_out, head));
  for (int64_t k = 0; k < a.inputs_count; k++)
    common = common && starts_at<S, bytes>(a.input(k), head);
  for (int64_t k = 0; k < a.outputs_count; k++)
    common = common && starts_at<S, bytes>(a.output(k), head);
  return split<Width>(a.count, head, common);
}

template <class El, Op O, int Width, class Arrays>
__device__ void walk(const Arrays& a, Blocks blocks) {
  using Vectors = Tile<El, O, Width, true, Arrays>;
  using Singles = Tile<El, O, Width, false, Arrays>;
  const auto split = split_of<typename El::S, typename El::A, Width>(a);
  deal<Vectors::each>(
      split.vectors, [&](int64_t first) { Vectors(a, split, first, split.vectors).run(); }, blocks);
  deal<Singles::each>(
      split.singles(), [&](int64_t first) { Singles(a, split, first, split.singles()).run(); },
      blocks);
}

template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));

}  // namespace
}  // namespace pycomm::cuda
