// Threads that play the ranks of one host: sanitizers do not see across processes.
#pragma once

#include <functional>
#include <optional>

#include "scenario.h"
#include "shm/board.h"

namespace pycomm::test {

// What a thread has that plays a rank.
struct Rank {
  shm::Board& board;
  shm::Idle& idle;
  Random shared;  // gives the same numbers on all ranks
  Random own;

  int me() const { return board.rank(); }
  int size() const { return board.size(); }
  void dawdle();  // sometimes, for a little while
};

struct Group {
  int size = 2;
  bool crowded = true;
  double timeout_s = 60;
  uint64_t seed = 0;
  std::optional<shm::Groups> groups = {};  // those of a board, unless told
};

// Calls `play` on a thread for each rank, and returns when all have returned. All boards lie over
// one mapping of their segment: ThreadSanitizer knows memory by its address.
void play_ranks(const Group&, const std::function<void(Rank&)>& play);

// Memory of an operation, `shift` bytes behind a cache line: in a slab, between guards that must
// not change; or on the heap, which sanitizers guard.
class Buffer {
 public:
  Buffer(size_t bytes, bool in_slab, size_t shift);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  char* data() { return memory_ + guard_ + shift_; }
  const char* data() const { return memory_ + guard_ + shift_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr char kGuarded = 0x5a;
  size_t bytes_, guard_, shift_;
  std::vector<char> heap_;
  char* memory_;
};

}  // namespace pycomm::test
