// The k elements of largest magnitude, in the order of their indices: radix selection, then
// compaction. One launch after another:
//
// 1. select_begin clears the state.
// 2. For each digit of the magnitudes' bits, from the top: select_histogram counts the digits of
//    the elements that agree with the digits known so far, select_digit finds the next digit of the
//    threshold: the k-th largest magnitude. In the end `remaining` elements equal to it are taken.
// 3. select_count counts, for each tile, the elements above the threshold and equal to it;
//    select_scan adds these numbers up over the tiles before.
// 4. select_gather writes elements above the threshold, and of those equal to it the first ones.
//
// Blocks meet only in integer sums in the histogram, in any order. What a launch writes the next
// one reads.
#include "cuda/select.h"

namespace pycomm::cuda {

struct SelectBeginArgs {
  uint64_t k;
  Selection* state;
};

struct SelectHistogramArgs {
  int64_t count;  // fewer than 2³²: a block counts in 32 bits
  const void* x;
  int64_t shift;  // of the digit
  Selection* state;
};

struct SelectDigitArgs {
  int64_t shift;
  Selection* state;
};

// The number of elements above the threshold, and equal to it: of a tile, then of those before it.
struct TileCount {
  uint64_t above, equal;
};

struct SelectTilesArgs {
  int64_t count;
  const void* x;
  const Selection* state;
  TileCount* tiles;  // one more than there are tiles: the sum over all
  void* values;
  int64_t* indices;
};

struct SelectScanArgs {
  int64_t count;
  TileCount* tiles;
};

namespace {

__device__ inline uint64_t taken(TileCount c, uint64_t remaining) {
  return c.above + (c.equal < remaining ? c.equal : remaining);
}

template <DType D>
struct Selector {
  using S = typename ElementOf<D>::S;
  using Raw = typename KeyOf<D>::Raw;
  static constexpr int width = kTileWidth<S>;
  using Part = Run<S, width>;

  static __device__ int64_t tiles(int64_t count) {
    return (count + kTileElements<S> - 1) / kTileElements<S>;
  }

  static __device__ int64_t place(int64_t tile, int round) {
    return tile * kTileElements<S> + (int64_t(round) * kBlockThreads + threadIdx.x) * width;
  }

  // Elements above in the lower 32 bits, equal ones in the upper.
  static __device__ uint64_t counted(const Part& part, int64_t at, int64_t count, Raw threshold) {
    uint64_t n = 0;
#pragma unroll
    for (int e = 0; e < width; e++) {
      const Raw key = key_of<D>(part.at[e]);
      const uint64_t one = key > threshold ? 1 : key == threshold ? 1ull << 32 : 0;
      n += at + e < count ? one : 0;
    }
    return n;
  }

  // Writes what is selected of one thread's elements; `before` counts those before them.
  static __device__ void write(const SelectTilesArgs& a, const Part& part, int64_t at,
                               TileCount before, Raw threshold, uint64_t remaining) {
#pragma unroll
    for (int e = 0; e < width; e++) {
      const Raw key = key_of<D>(part.at[e]);
      const bool above = key > threshold, equal = key == threshold;
      if (at + e >= a.count || !(above || equal)) continue;
      if (above || before.equal < remaining) {
        const uint64_t to = taken(before, remaining);
        static_cast<S*>(a.values)[to] = part.at[e];
        a.indices[to] = at + e;
      }
      before = {before.above + above, before.equal + equal};
    }
  }
};

struct AddCounts {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

__device__ inline void add_to(uint64_t* sum, uint64_t n) {
  using Wide = unsigned long long;
  atomicAdd(reinterpret_cast<Wide*>(sum), Wide(n));
}

// Counts the digits of N elements that agree with the known prefix.
template <DType D, class S, int N>
__device__ void count_digits(const Run<S, N>& run, uint64_t prefix, int shift, uint32_t* bins) {
#pragma unroll
  for (int e = 0; e < N; e++) {
    const uint64_t key = key_of<D>(run.at[e]), known = kDigitBits + shift;
    if (known >= 64 || key >> known == prefix >> known)
      atomicAdd(&bins[(key >> shift) % kBins], 1u);
  }
}

}  // namespace

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) select_begin(SelectBeginArgs a) {
  if (blockIdx.x > 0) return;
  for (int bin = int(threadIdx.x); bin < kBins; bin += kBlockThreads) a.state->histogram[bin] = 0;
  if (threadIdx.x > 0) return;
  a.state->prefix = 0;
  a.state->remaining = a.k;
}

template <int D>
__global__ void __launch_bounds__(kBlockThreads) select_histogram(SelectHistogramArgs a) {
  using S = typename ElementOf<DType(D)>::S;
  constexpr int width = kTileWidth<S>, each = 4;
  __shared__ uint32_t bins[kBins];
  for (int bin = int(threadIdx.x); bin < kBins; bin += kBlockThreads) bins[bin] = 0;
  __syncthreads();
  const auto split = cuda::split<width>(a.count, head_of<S>(a.x), true);
  const uint64_t prefix = a.state->prefix;
  const int shift = int(a.shift);
  const S* x = static_cast<const S*>(a.x);
  deal<each>(split.vectors, [&](int64_t first) {
    Run<S, width> run[each] = {};
#pragma unroll
    for (int u = 0; u < each; u++)
      if (first + u * kBlockThreads < split.vectors)
        load_vectors(x + split.vector(first + u * kBlockThreads), run[u]);
#pragma unroll
    for (int u = 0; u < each; u++)
      if (first + u * kBlockThreads < split.vectors)
        count_digits<DType(D)>(run[u], prefix, shift, bins);
  });
  deal<1>(split.singles(), [&](int64_t item) {
    count_digits<DType(D)>(Run<S, 1>{x[split.single(item)]}, prefix, shift, bins);
  });
  __syncthreads();
  for (int bin = int(threadIdx.x); bin < kBins; bin += kBlockThreads)
    if (bins[bin]) add_to(&a.state->histogram[bin], bins[bin]);
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) select_digit(SelectDigitArgs a) {
  if (blockIdx.x > 0) return;
  constexpr int each = kBins / kBlockThreads;
  const uint64_t remaining = a.state->remaining;
  const int top = kBins - 1 - int(threadIdx.x) * each;
  uint64_t mine[each], sum = 0, total;
  for (int i = 0; i < each; i++) sum += mine[i] = a.state->histogram[top - i];
  uint64_t before = block_before(sum, total);
  for (int i = 0; i < each; i++) {
    a.state->histogram[top - i] = 0;
    if (before < remaining && remaining <= before + mine[i]) {
      a.state->prefix |= uint64_t(top - i) << a.shift;
      a.state->remaining = remaining - before;
    }
    before += mine[i];
  }
}

template <int D>
__global__ void __launch_bounds__(kBlockThreads) select_count(SelectTilesArgs a) {
  using Of = Selector<DType(D)>;
  const auto* x = static_cast<const typename Of::S*>(a.x);
  const auto threshold = typename Of::Raw(a.state->prefix);
  for (int64_t tile = blockIdx.x; tile < Of::tiles(a.count); tile += gridDim.x) {
    typename Of::Part part[kTileRounds] = {};
#pragma unroll
    for (int r = 0; r < kTileRounds; r++) load_part(x, Of::place(tile, r), a.count, part[r]);
    uint64_t n = 0;
#pragma unroll
    for (int r = 0; r < kTileRounds; r++)
      n += Of::counted(part[r], Of::place(tile, r), a.count, threshold);
    n = block_fold(n, AddCounts{});
    if (threadIdx.x == 0) a.tiles[tile] = {n & 0xffffffffu, n >> 32};
  }
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) select_scan(SelectScanArgs a) {
  if (blockIdx.x > 0) return;
  constexpr int each = 8;
  TileCount before = {0, 0};
  for (int64_t round = 0; round <= a.count; round += int64_t(kBlockThreads) * each) {
    const int64_t first = round + int64_t(threadIdx.x) * each;
    TileCount mine[each] = {}, sum = {0, 0}, total;
    for (int i = 0; i < each; i++) {
      if (first + i < a.count) mine[i] = a.tiles[first + i];
      sum = {sum.above + mine[i].above, sum.equal + mine[i].equal};
    }
    sum = {before.above + block_before(sum.above, total.above),
           before.equal + block_before(sum.equal, total.equal)};
    for (int i = 0; i < each; i++) {
      if (first + i <= a.count) a.tiles[first + i] = sum;
      sum = {sum.above + mine[i].above, sum.equal + mine[i].equal};
    }
    before = {before.above + total.above, before.equal + total.equal};
  }
}

template <int D>
__global__ void __launch_bounds__(kBlockThreads) select_gather(SelectTilesArgs a) {
  using Of = Selector<DType(D)>;
  const auto* x = static_cast<const typename Of::S*>(a.x);
  const auto threshold = typename Of::Raw(a.state->prefix);
  const uint64_t remaining = a.state->remaining;
  for (int64_t tile = blockIdx.x; tile < Of::tiles(a.count); tile += gridDim.x) {
    TileCount base = a.tiles[tile];
    if (taken(base, remaining) == taken(a.tiles[tile + 1], remaining)) continue;
    typename Of::Part part[kTileRounds] = {};
#pragma unroll
    for (int r = 0; r < kTileRounds; r++) load_part(x, Of::place(tile, r), a.count, part[r]);
#pragma unroll
    for (int r = 0; r < kTileRounds; r++) {
      const int64_t at = Of::place(tile, r);
      uint64_t total;
      const uint64_t n = block_before(Of::counted(part[r], at, a.count, threshold), total);
      Of::write(a, part[r], at, {base.above + (n & 0xffffffffu), base.equal + (n >> 32)}, threshold,
                remaining);
      base = {base.above + (total & 0xffffffffu), base.equal + (total >> 32)};
    }
  }
}

}  // namespace pycomm::cuda
