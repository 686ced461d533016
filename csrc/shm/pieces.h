// How collectives over shared memory cut and move data: even shares, and pieces through staging.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/reduce.h"
#include "shm/board.h"

namespace pycomm::shm {

// An even share of `count` elements for each rank, cut at cache lines.
struct Shares {
  static constexpr size_t kLine = 64;
  Shares(size_t count, int size, size_t item) : count(count) {
    const size_t unit = std::max<size_t>(1, kLine / item);
    share = ((count + size - 1) / size + unit - 1) / unit * unit;
  }
  size_t begin(int r) const { return std::min(count, share * size_t(r)); }
  size_t end(int r) const { return begin(r + 1); }
  size_t count, share;
};

// How many of the `bytes` that a rank gets from a root it copies itself where the root can write to
// it: the root writes the rest, so that all are busy for as long. The same the other way round.
inline size_t own_part(size_t bytes, int size) {
  return (bytes - bytes / size_t(size)) / Shares::kLine * Shares::kLine;
}

inline void reduce(const std::vector<char*>& in, const std::vector<char*>& out, size_t count,
                   const cpu::Reduction& r) {
  cpu::reduce(reinterpret_cast<const void* const*>(in.data()),
              reinterpret_cast<void* const*>(out.data()), int(out.size()), count, r);
}

// While piece k is consumed, piece k + 1 is brought; one barrier a piece. Room for three pieces, of
// `bytes` each, is enough: step k reads pieces k and k - 1 and writes k + 1.
template <class Bring, class Consume>
void pipeline(Board& board, size_t pieces, size_t bytes, Idle& idle, Bring bring, Consume consume) {
  board.cut(pieces, bytes);
  bring(size_t(0));
  board.barrier(idle);
  for (size_t k = 0; k < pieces; k++) {
    if (k + 1 < pieces) bring(k + 1);
    consume(k);
    board.barrier(idle);
  }
}

}  // namespace pycomm::shm
