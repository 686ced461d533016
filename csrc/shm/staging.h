// How a rank writes the pieces that others then read: into its caches, or past them.
//
// Between two cores that share a cache, lines that the peer has read are written again at 40 GB/s,
// and past the caches at 14. Between two that share none each line has first to be taken from the
// peer's cache: 2 GB/s, and 27 past the caches. A guest may be moved from the one to the other at
// any time. So each rank measures now and then what it writes itself (decision 14).
#pragma once

#include <chrono>
#include <cstddef>

#include "shm/copy.h"

namespace pycomm::shm {

enum class PastCaches { never, where_faster, always };

class Staging {
 public:
  PastCaches way = PastCaches::where_faster;

  // An operation of so many pieces. In one of kEvery that have two, the first is written into the
  // caches and the second past them; what is much faster then is done from there on.
  void begin(size_t pieces) {
    samples_ = way == PastCaches::where_faster && pieces >= 2 && operations_++ % kEvery == 0;
    timed_ = 0;
  }

  bool past_caches(size_t k) const {
    if (way != PastCaches::where_faster) return way == PastCaches::always;
    return samples_ && k < 2 ? k == 1 : faster_past_;
  }

  // Writes a part of piece k.
  void write(size_t k, char* to, const char* from, size_t bytes) {
    const CopyOut copy_out(past_caches(k));
    if (!samples_ || k >= 2 || k != timed_ || bytes < kSampleBytes)
      return copy_out(to, from, bytes);
    const auto start = std::chrono::steady_clock::now();
    copy_out(to, from, bytes);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    s_per_byte_[timed_++] = took.count() / double(bytes);
    if (k == 1) faster_past_ = s_per_byte_[0] > kMuch * s_per_byte_[1];
  }

 private:
  static constexpr size_t kEvery = 8;
  static constexpr size_t kSampleBytes = size_t(16) << 10;
  static constexpr double kMuch = 2;

  bool samples_ = false, faster_past_ = false;
  size_t operations_ = 0, timed_ = 0;
  double s_per_byte_[2] = {};
};

}  // namespace pycomm::shm
