// What a process sleeps on while it waits for others: any of them rings it.
#pragma once

#include "shm/counter.h"

namespace pycomm::shm {

class Doorbell {
 public:
  // After something that the owner may wait for was published by a sequentially consistent store:
  // then either the owner sees that before it sleeps, or this thread sees that it sleeps.
  void ring() {
    if (!sleepers_.load(std::memory_order_seq_cst)) return;
    rings_.fetch_add(1);
    syscall(SYS_futex, &rings_, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
  }

  // expect(), look whether what is waited for has come, sleep(), leave().
  uint32_t expect() {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    return rings_.load(std::memory_order_seq_cst);
  }
  void sleep(uint32_t expected, long us) {
    timespec limit{us / 1000000, us % 1000000 * 1000};
    syscall(SYS_futex, &rings_, FUTEX_WAIT, expected, &limit, nullptr, 0);
  }
  void leave() { sleepers_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  std::atomic<uint32_t> rings_, sleepers_;
};

}  // namespace pycomm::shm
