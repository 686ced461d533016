// Casts between float types: an element is loaded into its accumulator, becomes the other type's
// accumulator, and is stored, as everywhere else. float64 becomes a narrow type by way of float32.
//
// Every element belongs to one thread: the target may be the source where both are equally wide.
#include "cuda/grid.h"

namespace pycomm::cuda {

struct ConvertArgs {
  int64_t count;
  const void* source;
  void* target;
};

namespace {

template <class From, class To>
PYCOMM_INLINE typename To::S converted(typename From::S x) {
  return To::store(typename To::A(From::load(x)));
}

// A thread takes up to 8 vectors at a time: 64 bytes of the source.
template <class From, class To, bool Vector>
struct Cast {
  static constexpr int from_bytes = sizeof(typename From::S), to_bytes = sizeof(typename To::S),
                       width = kVectorBytes / (from_bytes > to_bytes ? from_bytes : to_bytes),
                       N = Vector ? width : 1, each = width * from_bytes == 16 ? 4 : 8;

  static __device__ Split<width> split_of(const ConvertArgs& a) {
    const int64_t head = from_bytes > to_bytes ? head_of<typename From::S>(a.source)
                                               : head_of<typename To::S>(a.target);
    return split<width>(a.count, head,
                        starts_at<typename From::S, width * from_bytes>(a.source, head) &&
                            starts_at<typename To::S, width * to_bytes>(a.target, head));
  }

  static __device__ void run(const ConvertArgs& a, const Split<width>& split, int64_t first,
                             int64_t items) {
    Run<typename From::S, N> x[each] = {};
    auto at = [&](int64_t item) { return Vector ? split.vector(item) : split.single(item); };
#pragma unroll
    for (int u = 0; u < each; u++) {
      const int64_t item = first + u * kBlockThreads;
      if (item < items) load_run<Vector>(a.source, at(item), x[u]);
    }
#pragma unroll
    for (int u = 0; u < each; u++) {
      const int64_t item = first + u * kBlockThreads;
      Run<typename To::S, N> y;
#pragma unroll
      for (int i = 0; i < N; i++) y.at[i] = converted<From, To>(x[u].at[i]);
      if (item < items) store_run<Vector>(a.target, at(item), y);
    }
  }
};

}  // namespace

template <int Source, int Target>
__global__ void __launch_bounds__(kBlockThreads) convert(ConvertArgs a) {
  using Vectors = Cast<ElementOf<DType(Source)>, ElementOf<DType(Target)>, true>;
  using Singles = Cast<ElementOf<DType(Source)>, ElementOf<DType(Target)>, false>;
  const auto split = Vectors::split_of(a);
  deal<Vectors::each>(split.vectors,
                      [&](int64_t first) { Vectors::run(a, split, first, split.vectors); });
  deal<Singles::each>(split.singles(),
                      [&](int64_t first) { Singles::run(a, split, first, split.singles()); });
}

}  // namespace pycomm::cuda
