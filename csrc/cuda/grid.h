// How a grid walks over arrays: the elements that lie in whole 16-byte vectors in tiles of vectors,
// the others one by one.
//
// A vector of an array is Width elements: 16 bytes of the widest type that is walked, so that
// threads side by side touch memory side by side. The first one starts where every array has a
// boundary of its vectors; where there is no such element, there are no vectors. Consecutive
// threads take consecutive vectors; each takes several, a block apart, so that their loads are in
// flight together.
#pragma once

#include "cuda/words.h"

namespace pycomm::cuda {

constexpr int kBlockThreads = 256;
constexpr int kWarpThreads = 32;
constexpr int kBlockWarps = kBlockThreads / kWarpThreads;
constexpr int kVectorBytes = 16;

// The elements [head, head + vectors * Width) of `count` lie in vectors.
template <int Width>
struct Split {
  int64_t count, head, vectors;

  __device__ int64_t singles() const { return count - vectors * Width; }
  __device__ int64_t vector(int64_t i) const { return head + i * Width; }
  __device__ int64_t single(int64_t i) const { return i < head ? i : i + vectors * Width; }
};

__device__ inline int64_t beyond_boundary(const void* p) {
  return int64_t(reinterpret_cast<uintptr_t>(p) % kVectorBytes);
}

// How many elements of T lie before the first 16-byte boundary; −1: none starts at a boundary.
template <class T>
__device__ int64_t head_of(const void* p) {
  int64_t bytes = (kVectorBytes - beyond_boundary(p)) % kVectorBytes;
  return bytes % sizeof(T) == 0 ? bytes / int64_t(sizeof(T)) : -1;
}

// Whether the element of T after `head` others starts at a boundary of Bytes.
template <class T, int Bytes = kVectorBytes>
__device__ bool starts_at(const void* p, int64_t head) {
  return head >= 0 && beyond_boundary(static_cast<const T*>(p) + head) % Bytes == 0;
}

template <int Width>
__device__ Split<Width> split(int64_t count, int64_t head, bool common) {
  if (!common || head < 0 || head > count) return {count, count, 0};
  return {count, head, (count - head) / Width};
}

// The blocks that share a walk, and which of them this one is.
struct Blocks {
  int64_t self, count;
};

__device__ inline Blocks whole_grid() { return {blockIdx.x, gridDim.x}; }

// Deals `items` to the threads of some blocks: body(first) takes the items first, first +
// kBlockThreads, …, at most Each of them, those below `items`.
template <int Each, class Body>
__device__ void deal(int64_t items, Body body, Blocks blocks = whole_grid()) {
  constexpr int64_t tile = int64_t(kBlockThreads) * Each;
  const int64_t step = tile * blocks.count;
  for (int64_t first = tile * blocks.self + threadIdx.x; first < items; first += step) body(first);
}

// ---- N consecutive elements in registers

template <class T, int N>
struct Run {
  T at[N];
};

// What one access moves: 16 bytes, or a whole run that is shorter.
template <class T, int N>
constexpr int kWordBytes = N * sizeof(T) < kVectorBytes ? int(N * sizeof(T)) : kVectorBytes;

// `from` is at a boundary of kWordBytes<T, N>.
template <class T, int N>
__device__ void load_vectors(const T* from, Run<T, N>& run) {
  using Word = typename WordOf<kWordBytes<T, N>>::T;
  constexpr int words = int(sizeof(run) / sizeof(Word));
  static_assert(words * sizeof(Word) == sizeof(run), "whole words");
  Word word[words];
#pragma unroll
  for (int w = 0; w < words; w++) word[w] = reinterpret_cast<const Word*>(from)[w];
  memcpy(run.at, word, sizeof(run));
}

template <class T, int N>
__device__ void store_vectors(T* to, const Run<T, N>& run) {
  using Word = typename WordOf<kWordBytes<T, N>>::T;
  constexpr int words = int(sizeof(run) / sizeof(Word));
  static_assert(words * sizeof(Word) == sizeof(run), "whole words");
  Word word[words];
  memcpy(word, run.at, sizeof(run));
#pragma unroll
  for (int w = 0; w < words; w++) put(reinterpret_cast<Word*>(to) + w, word[w]);
}

// Vector: by the widest accesses; otherwise one element.
template <bool Vector, class T, int N>
__device__ void load_run(const void* array, int64_t at, Run<T, N>& run) {
  const T* from = static_cast<const T*>(array) + at;
  if constexpr (Vector) load_vectors(from, run);
  if constexpr (!Vector) run.at[0] = *from;
}

template <bool Vector, class T, int N>
__device__ void store_run(void* array, int64_t at, const Run<T, N>& run) {
  T* to = static_cast<T*>(array) + at;
  if constexpr (Vector) store_vectors(to, run);
  if constexpr (!Vector) *to = run.at[0];
}

}  // namespace pycomm::cuda
