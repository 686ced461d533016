// The first element of an array that is NaN or infinite.
//
// find_non_finite:
// 1. Each thread looks at words of 8 bytes, 16 bytes at a time, in rising order, and stops at the
//    first one in which an element is not finite.
// 2. The least index of a block, over the lanes by shuffles, over the warps through shared memory.
// 3. It is written to the block's place: no block reads what another writes.
//
// first_of, one block, launched after it: the least of all places; −1 if there is none.
#include "cuda/block.h"
#include "cuda/grid.h"

namespace pycomm::cuda {

struct FindNonFiniteArgs {
  int64_t count;
  const void* x;
  int64_t* found;  // one place for each block
};

struct FirstOfArgs {
  int64_t count;
  const int64_t* found;
  int64_t components;  // of an element: 2 if it is complex
  int64_t* first;
};

namespace {

constexpr int64_t kNone = int64_t(~0ull >> 1);

// The magnitudes of a type, as integers, are not finite from here on.
template <DType D>
constexpr uint64_t kNonFinite = 0;
template <>
constexpr uint64_t kNonFinite<DType::f16> = 0x7c00;
template <>
constexpr uint64_t kNonFinite<DType::bf16> = 0x7f80;
template <>
constexpr uint64_t kNonFinite<DType::f32> = 0x7f800000;
template <>
constexpr uint64_t kNonFinite<DType::f64> = 0x7ff0000000000000;
template <>
constexpr uint64_t kNonFinite<DType::e4m3> = 0x7f;
template <>
constexpr uint64_t kNonFinite<DType::e5m2> = 0x7c;

template <DType D>
struct Words {
  using S = typename ElementOf<D>::S;
  static constexpr int bits = 8 * int(sizeof(S)), width = kVectorBytes / int(sizeof(S));
  static constexpr uint64_t each = ~0ull / (~0ull >> (64 - bits));  // a 1 in every element
  static constexpr uint64_t sign = each << (bits - 1);
  static constexpr uint64_t beyond = sign - each * kNonFinite<D>;

  // The sign bit of each element of a word that is not finite: its magnitude, plus what is missing
  // from the threshold to the sign bit, carries into that.
  static __device__ uint64_t marks(uint64_t word) { return ((word & ~sign) + beyond) & sign; }

  // The first marked element of 16 bytes.
  static __device__ int first(const Run<uint64_t, 2>& mark) {
    const bool low = mark.at[0] != 0;
    return (low ? 0 : width / 2) + (__ffsll(int64_t(low ? mark.at[0] : mark.at[1])) - 1) / bits;
  }

  static __device__ uint64_t element(const void* x, int64_t i) {
    uint64_t word = 0;
    memcpy(&word, static_cast<const S*>(x) + i, sizeof(S));
    return marks(word);
  }
};

constexpr int kEach = 4;

// The least index among the vectors first, first + kBlockThreads, …
template <DType D>
__device__ int64_t search(const void* x, const Split<Words<D>::width>& split, int64_t first) {
  Run<uint64_t, 2> mark[kEach] = {};
#pragma unroll
  for (int u = 0; u < kEach; u++) {
    const int64_t item = first + u * kBlockThreads;
    if (item < split.vectors)
      load_vectors(reinterpret_cast<const uint64_t*>(static_cast<const char*>(x) +
                                                     split.vector(item) *
                                                         int64_t(sizeof(typename Words<D>::S))),
                   mark[u]);
  }
  int64_t found = kNone;
#pragma unroll
  for (int u = kEach - 1; u >= 0; u--) {
    mark[u] = {Words<D>::marks(mark[u].at[0]), Words<D>::marks(mark[u].at[1])};
    if (mark[u].at[0] | mark[u].at[1])
      found = split.vector(first + u * kBlockThreads) + Words<D>::first(mark[u]);
  }
  return found;
}

struct Least {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return b < a ? b : a; }
};

}  // namespace

template <int D>
__global__ void __launch_bounds__(kBlockThreads) find_non_finite(FindNonFiniteArgs a) {
  using W = Words<DType(D)>;
  const int64_t head = head_of<typename W::S>(a.x);
  const auto split = cuda::split<W::width>(a.count, head, true);
  int64_t least = kNone;
  deal<kEach>(split.vectors, [&](int64_t first) {
    if (least == kNone) least = search<DType(D)>(a.x, split, first);
  });
  deal<1>(split.singles(), [&](int64_t item) {
    const int64_t i = split.single(item);
    if (i < least && W::element(a.x, i)) least = i;
  });
  least = block_fold(least, Least{});
  if (threadIdx.x == 0) a.found[blockIdx.x] = least;
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) first_of(FirstOfArgs a) {
  if (blockIdx.x > 0) return;
  int64_t least = kNone;
  for (int64_t i = threadIdx.x; i < a.count; i += kBlockThreads) least = Least{}(least, a.found[i]);
  least = block_fold(least, Least{});
  if (threadIdx.x == 0) *a.first = least == kNone ? -1 : least / a.components;
}

}  // namespace pycomm::cuda
