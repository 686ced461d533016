// What the threads of a block find out together.
#pragma once

#include "cuda/grid.h"

namespace pycomm::cuda {

// x of lane l + 16, l + 8, … folded into lane l: the order is that of a binary tree.
template <class T, class Fold>
__device__ T warp_fold(T x, Fold fold) {
#pragma unroll
  for (int delta = kWarpThreads / 2; delta > 0; delta /= 2)
    x = fold(x, __shfl_down_sync(~0u, x, delta));
  return x;
}

// The fold of all threads' x, in thread 0: that of each warp, then over the warps in their order.
// All threads call it, and may call it again at once.
template <class T, class Fold>
__device__ T block_fold(T x, Fold fold) {
  __shared__ T warps[kBlockWarps];
  x = warp_fold(x, fold);
  __syncthreads();
  if (threadIdx.x % kWarpThreads == 0) warps[threadIdx.x / kWarpThreads] = x;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kBlockWarps; w++) x = fold(x, warps[w]);
  return x;
}

// The sum of x over the threads before this one; `total` is that over all threads. Integers.
template <class T>
__device__ T block_before(T x, T& total) {
  __shared__ T warps[kBlockWarps];
  const int lane = int(threadIdx.x) % kWarpThreads, warp = int(threadIdx.x) / kWarpThreads;
  T sum = x;
#pragma unroll
  for (int delta = 1; delta < kWarpThreads; delta *= 2) {
    const T other = __shfl_up_sync(~0u, sum, delta);
    if (lane >= delta) sum += other;
  }
  __syncthreads();
  if (lane == kWarpThreads - 1) warps[warp] = sum;
  __syncthreads();
  T before = sum - x;
  total = 0;
  for (int w = 0; w < kBlockWarps; w++) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before;
}

}  // namespace pycomm::cuda
