#include "ranks.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <latch>
#include <thread>

#include "shm/slab.h"

namespace pycomm::test {

void Rank::dawdle() {
  if (own.once_in(10)) std::this_thread::yield();
  if (own.once_in(20)) std::this_thread::sleep_for(std::chrono::microseconds(own.below(2000)));
}

void play_ranks(const Group& group, const std::function<void(Rank&)>& play) {
  const auto segment = shm::Segment::create(shm::Board::bytes(group.size));
  const auto groups = group.groups.value_or(shm::groups_of(group.size, false, {}));
  std::latch all_there(group.size);  // as ranks know of each other when they share a board
  auto thread = [&](int r) {
    shm::Board board(segment.alias(), r, group.size, group.crowded, group.timeout_s, groups);
    all_there.arrive_and_wait();
    shm::Idle idle;
    Rank rank{board, idle, Random(group.seed), Random(group.seed, r + 1)};
    try {
      play(rank);
    } catch (const shm::Failure&) {
      fail("rank " + std::to_string(r) + " of " + std::to_string(group.size) +
           ": a failure that nobody expects");
    }
  };
  std::vector<std::thread> threads;
  for (int r = 0; r < group.size; r++) threads.emplace_back(thread, r);
  for (auto& t : threads) t.join();
}

Buffer::Buffer(size_t bytes, bool in_slab, size_t shift)
    : bytes_(bytes), guard_(in_slab ? kGuard : 0), shift_(shift) {
  if (in_slab) {
    memory_ = static_cast<char*>(shm::Slabs::instance().allocate(bytes + shift + 2 * kGuard));
    std::memset(memory_, kGuarded, shift + kGuard);
    std::memset(data() + bytes, kGuarded, kGuard);
  } else {
    heap_.resize(bytes + shift);
    memory_ = heap_.data();
  }
}

Buffer::~Buffer() {
  if (!guard_) return;
  auto intact = [](const char* from, size_t n) {
    return std::all_of(from, from + n, [](char c) { return c == kGuarded; });
  };
  expect(intact(memory_, shift_ + kGuard) && intact(data() + bytes_, kGuard),
         "memory beside a symmetric buffer was written");
  shm::Slabs::instance().release(memory_);
}

}  // namespace pycomm::test
