// The threads of one block as fibers of one host thread: each runs until it waits for the others.
//
// A fiber that waits passes the processor to the next one, in a ring. The order is always the same:
// threads 0, 1, 2, … up to where they wait.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;

class Fibers {
 public:
  // Runs body(thread) for threads 0 … count-1.
  void run(int count, const std::function<void(int)>& body) {
    body_ = &body;
    while (int(fibers_.size()) < count) fibers_.push_back(std::make_unique<Fiber>());
    count_ = live_ = count;
    warp_live_.assign((count + kWarp - 1) / kWarp, 0);
    block_ = {};
    warps_.assign(warp_live_.size(), {});
    for (int i = 0; i < count; i++) {
      fibers_[i]->done = false;
      warp_live_[i / kWarp]++;
      prepare(*fibers_[i]);
    }
    switch_to(home_, *fibers_[current_ = 0]);
    body_ = nullptr;
  }

  bool running() const { return body_ != nullptr; }
  int current() const { return current_; }

  void wait_for_block() { wait(block_, live_); }
  void wait_for_warp() { wait(warps_[current_ / kWarp], warp_live_[current_ / kWarp]); }

 private:
  struct Fiber {
    ucontext_t context;
    std::vector<char> memory = std::vector<char>(kStackBytes);
    void* stack = memory.data();
    size_t stack_bytes = kStackBytes;
    bool done = false;
  };
  struct Barrier {
    int arrived = 0;
    uint64_t generation = 0;
  };

  void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Fibers::enter, 0);
  }

  static void enter();

  void main() {
    arrived_in(nullptr);
    (*body_)(current_);
    Fiber& self = *fibers_[current_];
    self.done = true;
    live_--;
    warp_live_[current_ / kWarp]--;
    release(block_, live_);
    release(warps_[current_ / kWarp], warp_live_[current_ / kWarp]);
    switch_to(self, live_ ? next() : home_);
  }

  static void release(Barrier& barrier, int expected) {
    if (barrier.arrived < expected || barrier.arrived == 0) return;
    barrier.arrived = 0;
    barrier.generation++;
  }

  void wait(Barrier& barrier, int expected) {
    const uint64_t mine = barrier.generation;
    barrier.arrived++;
    release(barrier, expected);
    while (barrier.generation == mine) {
      Fiber& self = *fibers_[current_];
      switch_to(self, next());
    }
  }

  Fiber& next() {
    do current_ = (current_ + 1) % count_;
    while (fibers_[current_]->done);
    return *fibers_[current_];
  }

#if defined(__SANITIZE_ADDRESS__)
  void switch_to(Fiber& from, Fiber& to) {
    if (&from == &to) return;
    void* fake = nullptr;
    from_ = &from;
    __sanitizer_start_switch_fiber(from.done ? nullptr : &fake, to.stack, to.stack_bytes);
    swapcontext(&from.context, &to.context);
    arrived_in(fake);
  }
  void arrived_in(void* fake) {
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
    if (from_ == &home_) home_.stack = const_cast<void*>(stack), home_.stack_bytes = bytes;
  }
  Fiber* from_ = nullptr;
#else
  void switch_to(Fiber& from, Fiber& to) {
    if (&from != &to) swapcontext(&from.context, &to.context);
  }
  void arrived_in(void*) {}
#endif

  const std::function<void(int)>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber home_;
  int count_ = 0, live_ = 0, current_ = 0;
  std::vector<int> warp_live_;
  Barrier block_;
  std::vector<Barrier> warps_;
};

inline Fibers fibers;
inline void Fibers::enter() { fibers.main(); }

}  // namespace shim
