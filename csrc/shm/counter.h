// A number in shared memory that only grows, and how to wait for it: spin, yield, then sleep.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pycomm::shm {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One writer, any number of readers. What was written before publish() is seen by who has seen the
// value.
struct Counter {
  std::atomic<uint64_t> value;
  std::atomic<uint32_t> sleepers;

  // Sequentially consistent, so that either the writer sees the sleeper or the sleeper sees the
  // value.
  void publish(uint64_t v) {
    value.store(v, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst))
      syscall(SYS_futex, word(), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
  }

  bool reached(uint64_t target) const { return value.load(std::memory_order_acquire) >= target; }

  // Sleeps until the value changes, at most `us` microseconds; may return early.
  void sleep(uint64_t target, long us) {
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    const uint64_t seen = value.load(std::memory_order_seq_cst);
    timespec limit{us / 1000000, us % 1000000 * 1000};
    if (seen < target) syscall(SYS_futex, word(), FUTEX_WAIT, uint32_t(seen), &limit, nullptr, 0);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  uint32_t* word() {
    return reinterpret_cast<uint32_t*>(&value);
  }  // the low half: little-endian machines
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(Counter) == 16);

}  // namespace pycomm::shm
