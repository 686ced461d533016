// Block-scaled quantisation, and its inverse added up over ranks. A warp takes whole blocks.
//
// quantize:
// 1. Each lane loads its elements of several blocks.
// 2. The largest magnitude of a block, over the lanes by shuffles: as an integer, so in any order.
// 3. The scale is written by one lane; every lane scales, rounds and writes its elements.
//
// dequantize_reduce:
// 1. Each lane loads its elements of the first input, and those of the next while it adds one.
// 2. They are added in the order of the inputs, in float32, and rounded once.
//
// Warps share nothing, and no thread reads what another writes.
#include "cuda/quantize.h"

namespace pycomm::cuda {

constexpr int kQuantInputs = 200;

struct QuantizeArgs {
  int64_t count;
  const void* x;
  void* values;
  float* scales;
};

struct DequantizeArgs {
  int64_t count;
  int64_t inputs;
  double divisor;           // of the sum, 1 where there is none
  const float* partial_in;  // what the inputs are added to, if anything
  void* output;
  const void* values[kQuantInputs];
  const float* scales[kQuantInputs];
};

namespace {

__device__ inline uint32_t warp_maximum(uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, x);
#else
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    uint32_t other = __shfl_xor_sync(~0u, x, mask);
    x = other > x ? other : x;
  }
  return x;
#endif
}

template <DType D, DType Q, bool Vector>
struct Quantizer {
  using El = ElementOf<D>;
  using Code = Quantum<Q>;
  using S = typename El::S;
  using Place = Lane<S, Vector>;
  static constexpr int width = Place::width, runs = Place::runs;
  static constexpr int each = Vector ? (runs == 1 ? 4 : 2) : 1;  // four loads or more in flight

  const QuantizeArgs& a;

  __device__ void load(const Place& lane, Run<S, width> (&x)[runs]) const {
#pragma unroll
    for (int r = 0; r < runs; r++)
      if (lane.has(lane.run(r))) load_run<Vector>(a.x, lane.run(r), x[r]);
  }

  __device__ uint32_t amax(const Run<S, width> (&x)[runs]) const {
    uint32_t most = 0;
#pragma unroll
    for (int r = 0; r < runs; r++)
#pragma unroll
      for (int i = 0; i < width; i++) {
        uint32_t m = magnitude(El::load(x[r].at[i]));
        most = m > most ? m : most;
      }
    return warp_maximum(most);
  }

  __device__ void store(const Place& lane, const Run<S, width> (&x)[runs], float inverse) const {
#pragma unroll
    for (int r = 0; r < runs; r++) {
      Run<typename Code::S, width> q;
#pragma unroll
      for (int i = 0; i < width; i++) q.at[i] = Code::encode(El::load(x[r].at[i]) * inverse);
      if (lane.has(lane.run(r))) store_run<Vector>(a.values, lane.run(r), q);
    }
  }

  __device__ void run(int64_t block, int64_t end) const {
    Run<S, width> x[each][runs] = {};
#pragma unroll
    for (int u = 0; u < each; u++)
      if (block + u < end) load({(block + u) * kQuantBlock, a.count}, x[u]);
#pragma unroll
    for (int u = 0; u < each; u++) {
      const float scale = scale_of(amax(x[u]), Code::largest);
      if (block + u >= end) continue;
      if (threadIdx.x % kWarpThreads == 0) a.scales[block + u] = scale;
      store({(block + u) * kQuantBlock, a.count}, x[u], inverse_of(scale));
    }
  }
};

template <DType D, DType Q, bool Vector>
struct Dequantizer {
  using El = ElementOf<D>;
  using Code = Quantum<Q>;
  using Place = Lane<typename El::S, Vector>;
  static constexpr int width = Place::width, runs = Place::runs;

  static constexpr int each = Vector ? 4 : 1;  // blocks whose loads are in flight together

  struct Input {
    Run<typename Code::S, width> q[runs];
    float scale;
  };
  using Sums = Run<float, width>[runs];

  const DequantizeArgs& a;
  int64_t block, end;

  __device__ bool mine(int u) const { return block + u < end; }
  __device__ Place lane(int u) const { return {(block + u) * kQuantBlock, a.count}; }

  __device__ void load(const Place& lane, int64_t k, Input& in) const {
    in.scale = a.scales[k][lane.first / kQuantBlock];
#pragma unroll
    for (int r = 0; r < runs; r++)
      if (lane.has(lane.run(r))) load_run<Vector>(a.values[k], lane.run(r), in.q[r]);
  }

  __device__ void load_all(int64_t k, Input (&in)[each]) const {
#pragma unroll
    for (int u = 0; u < each; u++)
      if (mine(u)) load(lane(u), k, in[u]);
  }

  __device__ void add(const Input& in, Sums& sums, bool first) const {
#pragma unroll
    for (int r = 0; r < runs; r++)
#pragma unroll
      for (int i = 0; i < width; i++) {
        float x = Code::decode(in.q[r].at[i]) * in.scale;
        sums[r].at[i] = first ? x : sums[r].at[i] + x;
      }
  }

  __device__ void add_all(const Input (&in)[each], Sums (&sums)[each], bool first) const {
#pragma unroll
    for (int u = 0; u < each; u++) add(in[u], sums[u], first);
  }

  __device__ void begin(const Place& lane, Sums& sums) const {
#pragma unroll
    for (int r = 0; r < runs; r++)
#pragma unroll
      for (int i = 0; i < width; i++)
        if (lane.has(lane.run(r))) sums[r].at[i] = a.partial_in[lane.run(r) + i];
  }

  __device__ void store(const Place& lane, const Sums& sums) const {
#pragma unroll
    for (int r = 0; r < runs; r++) {
      Run<typename El::S, width> out;
#pragma unroll
      for (int i = 0; i < width; i++) out.at[i] = El::store(mean_of(sums[r].at[i], a.divisor));
      if (lane.has(lane.run(r))) store_run<Vector>(a.output, lane.run(r), out);
    }
  }

  __device__ void run() const {
    Sums sums[each] = {};
    Input even[each] = {}, odd[each] = {};  // by turns, see reduce.cu
#pragma unroll
    for (int u = 0; u < each; u++)
      if (a.partial_in && mine(u)) begin(lane(u), sums[u]);
    load_all(0, even);
    for (int64_t k = 0; k < a.inputs; k += 2) {
      const bool another = k + 1 < a.inputs;
      if (another) load_all(k + 1, odd);
      add_all(even, sums, k == 0 && !a.partial_in);
      if (k + 2 < a.inputs) load_all(k + 2, even);
      if (another) add_all(odd, sums, false);
    }
#pragma unroll
    for (int u = 0; u < each; u++)
      if (mine(u)) store(lane(u), sums[u]);
  }
};

// How many leading blocks are walked by vectors.
__device__ inline int64_t vector_blocks(int64_t count, bool possible) {
  return possible ? count / kQuantBlock : 0;
}

__device__ inline int64_t all_blocks(int64_t count) {
  return (count + kQuantBlock - 1) / kQuantBlock;
}

}  // namespace

template <int D, int Q>
__global__ void __launch_bounds__(kBlockThreads) quantize(QuantizeArgs a) {
  using Fast = Quantizer<DType(D), DType(Q), true>;
  using Slow = Quantizer<DType(D), DType(Q), false>;
  const int64_t vectors = vector_blocks(a.count, aligned<typename Fast::S>(a.x, a.values));
  const int64_t blocks = all_blocks(a.count);
  deal_blocks<Fast::each>(0, vectors, [&](int64_t block) { Fast{a}.run(block, vectors); });
  deal_blocks<Slow::each>(vectors, blocks, [&](int64_t block) { Slow{a}.run(block, blocks); });
}

template <int D, int Q>
__global__ void __launch_bounds__(kBlockThreads) dequantize_reduce(DequantizeArgs a) {
  using Fast = Dequantizer<DType(D), DType(Q), true>;
  using Slow = Dequantizer<DType(D), DType(Q), false>;
  using S = typename ElementOf<DType(D)>::S;
  bool possible = true;
  for (int64_t k = 0; k < a.inputs; k++) possible = possible && aligned<S>(a.output, a.values[k]);
  const int64_t vectors = vector_blocks(a.count, possible);
  deal_blocks<Fast::each>(0, vectors, [&](int64_t block) { Fast{a, block, vectors}.run(); });
  const int64_t blocks = all_blocks(a.count);
  deal_blocks<Slow::each>(vectors, blocks, [&](int64_t block) { Slow{a, block, blocks}.run(); });
}

}  // namespace pycomm::cuda
