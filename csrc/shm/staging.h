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

  // An operation of so many pieces.
  void begin(size_t pieces) {
    first_ = next_;
    next_ += pieces;
  }

  // Of kEvery pieces, whatever operations they belong to, one is written into the caches and one
  // past them; the others in the way that was faster then.
  bool past_caches(size_t k) const {
    if (way != PastCaches::where_faster) return way == PastCaches::always;
    const size_t turn = (first_ + k) % kEvery;
    return turn < 2 ? turn == 1 : faster_past_;
  }

  // Writes a part of piece k.
  void write(size_t k, char* to, const char* from, size_t bytes) {
    const size_t number = first_ + k, turn = number % kEvery;
    const CopyOut copy_out(past_caches(k));
    if (turn >= 2 || number == timed_ || bytes < kTimedBytes) return copy_out(to, from, bytes);
    const auto start = std::chrono::steady_clock::now();
    copy_out(to, from, bytes);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    s_per_byte_[turn] = took.count() / double(bytes);
    timed_ = number;
    if (turn == 1) faster_past_ = s_per_byte_[0] > kMuch * s_per_byte_[1];
  }

 private:
  static constexpr size_t kEvery = 64;
  static constexpr size_t kTimedBytes = size_t(8) << 10;
  static constexpr double kMuch = 2;

  bool faster_past_ = false;
  size_t first_ = 0, next_ = 0;  // pieces: of this operation, and of the next one
  size_t timed_ = size_t(-1);    // the last one; only its first part is, the others are in caches
  double s_per_byte_[2] = {};
};

}  // namespace pycomm::shm
