// CUDA's words on the host: kernels become functions that run block after block.
//
// The threads of a block are a loop, or fibers where the kernel synchronises them. A library that
// includes this header holds the kernels of one file; one thread of the process uses it at a time.
// A kernel that waits for another one must find it in another process, or in a copy of the library.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

// ---- synchronisation

inline void must_be_fiber(const char* what) {
  if (fibers.running()) return;
  std::fprintf(stderr, "shim.h: %s in a kernel whose threads are a loop\n", what);
  std::abort();
}

// What a warp's lanes show each other, twice: the next exchange may begin while lanes still read.
struct Exchange {
  alignas(16) char slot[2][kWarp][16];
  int uses[kWarp];
};
inline Exchange exchanges[1024 / kWarp];

template <class T>
T exchanged(T mine, int lane) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>, "a value of up to 16 bytes");
  must_be_fiber("a warp's exchange");
  const int self = fibers.current();
  Exchange& warp = exchanges[self / kWarp];
  auto& slot = warp.slot[warp.uses[self % kWarp]++ % 2];
  std::memcpy(slot[self % kWarp], &mine, sizeof(T));
  fibers.wait_for_warp();
  threadIdx.x = unsigned(self);
  T other;
  std::memcpy(&other, slot[lane % kWarp], sizeof(T));
  return other;
}

inline int lane() { return fibers.current() % kWarp; }

}  // namespace shim

inline void __syncthreads() {
  shim::must_be_fiber("__syncthreads");
  const unsigned self = threadIdx.x;
  shim::fibers.wait_for_block();
  threadIdx.x = self;
}
inline void __syncwarp(unsigned = ~0u) {
  shim::must_be_fiber("__syncwarp");
  const unsigned self = threadIdx.x;
  shim::fibers.wait_for_warp();
  threadIdx.x = self;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return shim::exchanged(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shim::exchanged(value, shim::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int from = shim::lane() + delta;
  return shim::exchanged(value, from < shim::kWarp ? from : shim::lane());
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int from = shim::lane() - delta;
  return shim::exchanged(value, from >= 0 ? from : shim::lane());
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned bits = predicate ? 1u << shim::lane() : 0u;
  for (int mask = 1; mask < shim::kWarp; mask *= 2) bits |= __shfl_xor_sync(~0u, bits, mask);
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == ~0u;
}

// ---- atomics (threads never run at the same time) and bits

template <class T, class Change>
T shim_atomic(T* at, Change change) {
  T old = *at;
  *at = change(old);
  return old;
}
template <class T>
T atomicAdd(T* at, T x) {
  return shim_atomic(at, [&](T old) { return T(old + x); });
}
template <class T>
T atomicOr(T* at, T x) {
  return shim_atomic(at, [&](T old) { return T(old | x); });
}
template <class T>
T atomicMin(T* at, T x) {
  return shim_atomic(at, [&](T old) { return x < old ? x : old; });
}
template <class T>
T atomicMax(T* at, T x) {
  return shim_atomic(at, [&](T old) { return old < x ? x : old; });
}
template <class T>
T atomicExch(T* at, T x) {
  return shim_atomic(at, [&](T) { return x; });
}
template <class T>
T atomicCAS(T* at, T expected, T x) {
  return shim_atomic(at, [&](T old) { return old == expected ? x : old; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

// ---- launches

namespace shim {

struct Kernel {
  const char* name;
  size_t args_bytes;
  std::function<void(const void*)> body;
};

template <class Args>
Kernel kernel(const char* name, void (*body)(Args)) {
  static_assert(std::is_trivially_copyable_v<Args>, "kernels take one plain struct");
  static_assert(sizeof(Args) <= 4000 && sizeof(Args) % 8 == 0, "of 8-byte fields, in 4000 bytes");
  return {name, sizeof(Args), [body](const void* bytes) {
            Args args;
            std::memcpy(&args, bytes, sizeof(args));
            body(args);
          }};
}

inline void run_block(const Kernel& kernel, const void* args, bool synchronises) {
  const int threads = int(blockDim.x);
  auto thread = [&](int i) {
    threadIdx.x = unsigned(i);
    exchanges[i / kWarp].uses[i % kWarp] = 0;
    kernel.body(args);
  };
  if (synchronises) return fibers.run(threads, thread);
  for (int i = 0; i < threads; i++) thread(i);
}

struct How {
  bool synchronises;
  int threads;
  unsigned only;  // if not 0, only the first and the last so many blocks are run
};

// Returns what is wrong with the call, or nothing.
inline std::string launch(const Kernel& kernel, unsigned grid, const void* args, size_t bytes,
                          How how) {
  static std::mutex alone;
  std::lock_guard<std::mutex> lock(alone);
  if (bytes != kernel.args_bytes)
    return "takes " + std::to_string(kernel.args_bytes) + " bytes, got " + std::to_string(bytes);
  blockDim.x = unsigned(how.threads);
  gridDim.x = grid;
  for (unsigned block = 0; block < grid; block++) {
    if (how.only && block >= how.only && grid - block > how.only) continue;
    blockIdx.x = block;
    run_block(kernel, args, how.synchronises);
  }
  return "";
}

}  // namespace shim
