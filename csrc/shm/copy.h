// How collectives copy: into the caches, or past them where the data would not stay there anyhow.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pycomm::shm {

// The bytes of the last cache, which ranks share; tests write to it.
inline size_t& cache_bytes() {
  static const long found = sysconf(_SC_LEVEL3_CACHE_SIZE);
  static size_t bytes = found > 0 ? size_t(found) : size_t(32) << 20;
  return bytes;
}

inline void copy(char* to, const char* from, size_t bytes) {
  if (bytes && to != from) std::memcpy(to, from, bytes);
}

// Stores that need not first read the line that they write. They are weakly ordered: the fence
// makes them visible before any later publish().
inline void stream(char* to, const char* from, size_t bytes) {
#if defined(__x86_64__)
  constexpr size_t kLine = 64;
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % kLine);
  copy(to, from, head);
  for (to += head, from += head, bytes -= head; bytes >= kLine; bytes -= kLine) {
    auto* target = reinterpret_cast<__m128i*>(to);
    auto* source = reinterpret_cast<const __m128i*>(from);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1),
                  c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
    to += kLine, from += kLine;
  }
  _mm_sfence();
#endif
  copy(to, from, bytes);
}

// Copies to where nobody looks before the operation is over.
class CopyOut {
 public:
  // `touched`: the bytes that all ranks together read and write.
  explicit CopyOut(size_t touched) : streams_(touched >= cache_bytes()) {}
  void operator()(char* to, const char* from, size_t bytes) const {
    if (streams_ && bytes && to != from)
      stream(to, from, bytes);
    else
      copy(to, from, bytes);
  }

 private:
  bool streams_;
};

}  // namespace pycomm::shm
