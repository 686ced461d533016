// The sum of the squares of many arrays, in an order that depends on the arrays alone.
//
// square_sums: every array is cut into chunks of kChunkVectors * 16 bytes. For each chunk:
// 1. Its elements, in vectors of 16 bytes counted from the chunk's start, go round the threads:
//    thread t adds the squares of vectors t, t + 256, …, element after element, in float64.
// 2. The threads' sums are added by block_fold (a tree in each warp, then the warps in order).
// 3. The sum is written to the chunk's place.
//
// total_of, one block, launched after it: thread t adds places t, t + 256, …, then block_fold.
//
// Where an array does not start at a 16-byte boundary the same elements are loaded one by one.
#include "cuda/block.h"
#include "cuda/grid.h"

namespace pycomm::cuda {

constexpr int64_t kChunkVectors = 16 * kBlockThreads;

// An array, and the number of its first chunk; the table has one entry more, where the last ends.
struct SquaredArray {
  int64_t first_chunk;
  int64_t count;
  const void* x;
};

struct SquareSumsArgs {
  int64_t arrays;
  const SquaredArray* table;
  double* sums;  // one for each chunk
};

struct TotalOfArgs {
  int64_t count;
  const double* sums;
  double* total;
};

namespace {

struct Add {
  __device__ double operator()(double a, double b) const { return a + b; }
};

// The last array that begins at the chunk or before it, and has chunks.
__device__ inline int64_t array_of(const SquareSumsArgs& a, int64_t chunk) {
  int64_t low = 0, high = a.arrays;  // first_chunk[low] <= chunk < first_chunk[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.table[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

template <class El, bool Vector>
__device__ double chunk_sum(const typename El::S* x, int64_t count) {
  using S = typename El::S;
  constexpr int width = kVectorBytes / int(sizeof(S)), each = 4;
  constexpr int64_t step = int64_t(kBlockThreads) * width;
  double sum = 0;
  for (int64_t i = threadIdx.x * width; i < count; i += each * step) {
    Run<S, width> run[each] = {};
#pragma unroll
    for (int u = 0; u < each; u++) {
      const int64_t at = i + u * step;
      if (Vector && at + width <= count) {
        load_vectors(x + at, run[u]);
      } else {
#pragma unroll
        for (int e = 0; e < width; e++)
          if (at + e < count) run[u].at[e] = x[at + e];
      }
    }
#pragma unroll
    for (int u = 0; u < each; u++)
#pragma unroll
      for (int e = 0; e < width; e++) {
        const double value = double(El::load(run[u].at[e]));
        sum = sum + value * value;
      }
  }
  return sum;
}

}  // namespace

template <int D>
__global__ void __launch_bounds__(kBlockThreads) square_sums(SquareSumsArgs a) {
  using El = ElementOf<DType(D)>;
  using S = typename El::S;
  constexpr int64_t chunk_elements = kChunkVectors * kVectorBytes / int64_t(sizeof(S));
  const int64_t chunks = a.table[a.arrays].first_chunk;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const SquaredArray array = a.table[array_of(a, chunk)];
    const int64_t begin = (chunk - array.first_chunk) * chunk_elements;
    const int64_t left = array.count - begin;
    const int64_t count = left < chunk_elements ? left : chunk_elements;
    const S* x = static_cast<const S*>(array.x) + begin;
    double sum =
        beyond_boundary(x) == 0 ? chunk_sum<El, true>(x, count) : chunk_sum<El, false>(x, count);
    sum = block_fold(sum, Add{});
    if (threadIdx.x == 0) a.sums[chunk] = sum;
  }
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) total_of(TotalOfArgs a) {
  if (blockIdx.x > 0) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < a.count; i += kBlockThreads) sum = sum + a.sums[i];
  sum = block_fold(sum, Add{});
  if (threadIdx.x == 0) *a.total = canonical(sum);
}

}  // namespace pycomm::cuda
