// Who waits for whom among the processes of this host, so that a cycle is seen when it closes.
//
// A line is written by its process, but for `condemned`. `polls` grows each time that the process
// has looked at its condition again and found it unfulfilled. A cycle is a deadlock if nobody in it
// began another wait while everybody looked again several times: then no one's condition can become
// true, as only the others could make it so.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/failure.h"
#include "shm/segment.h"

namespace pycomm::shm {

struct Deadlock : Failure {
  explicit Deadlock(std::vector<int> cycle) : cycle(std::move(cycle)) {}
  std::vector<int>
      cycle;  // process numbers; each waits for the next, the last for the first; or empty
};

class Waits {
 public:
  static constexpr int kNobody = -1;
  static size_t bytes(int processes);

  Waits(Segment segment, int process, int processes);

  const Segment& segment() const { return segment_; }
  void close_descriptor() { segment_.close_descriptor(); }

  void begin();  // this process waits, by the calling thread
  void look(
      int process);  // still, for this one; now and then searches for a cycle; throws Deadlock
  void end();

  // Asynchronous operations under way. Their threads are left out, and so is all waiting while
  // there are any: they may still bring what another process waits for.
  void asynchronous(int more) { asynchronous_.fetch_add(more, std::memory_order_relaxed); }
  static void leave_out_this_thread();

 private:
  struct alignas(128) Line {
    std::atomic<int32_t> process;  // plus 1; 0 is nobody
    std::atomic<uint64_t> wait, polls, condemned;
  };
  struct Seen {
    int process;
    uint64_t wait, polls;
  };
  using Clock = std::chrono::steady_clock;

  std::vector<Seen> cycle() const;
  std::vector<int> condemn(const std::vector<Seen>& cycle);
  bool confirmed(const std::vector<Seen>& now) const;

  Segment segment_;
  Line* lines_;
  int process_, processes_;
  std::atomic<int> waiting_ = 0, asynchronous_ = 0;
  uint64_t wait_ = 0;
  std::vector<Seen> suspected_;
  Clock::time_point looked_;
};

}  // namespace pycomm::shm
