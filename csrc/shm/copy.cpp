#include "shm/copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pycomm::shm {
namespace {

// Of the cores that share it; sysconf gives that of the whole socket on some processors.
size_t last_cache_bytes() {
  size_t kib = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kib;
  return (kib ? kib : size_t(32) << 10) << 10;
}

// Stores that need not first read the line that they write. They are weakly ordered: the fence
// makes them visible before any later publish().
void stream(char* to, const char* from, size_t bytes) {
#if defined(__x86_64__)
  constexpr size_t kLine = 64;
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % kLine);
  std::memcpy(to, from, head);
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
  std::memcpy(to, from, bytes);
}

}  // namespace

size_t& cache_bytes() {
  static size_t bytes = last_cache_bytes();
  return bytes;
}

void copy(char* to, const char* from, size_t bytes) {
  if (bytes && to != from) std::memcpy(to, from, bytes);
}

void CopyOut::operator()(char* to, const char* from, size_t bytes) const {
  if (streams_ && bytes && to != from)
    stream(to, from, bytes);
  else
    copy(to, from, bytes);
}

}  // namespace pycomm::shm
