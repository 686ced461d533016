#include "shm/waits.h"

#include <utility>

namespace pycomm::shm {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(250);
constexpr uint64_t kLooks = 3;

thread_local bool left_out = false;

}  // namespace

size_t Waits::bytes(int processes) { return sizeof(Line) * size_t(processes) + 128; }

void Waits::leave_out_this_thread() { left_out = true; }

Waits::Waits(Segment segment, int process, int processes)
    : segment_(std::move(segment)), process_(process), processes_(processes) {
  const auto address = reinterpret_cast<uintptr_t>(segment_.data());
  lines_ = reinterpret_cast<Line*>((address + 127) & ~uintptr_t(127));
}

void Waits::begin() {
  if (left_out || waiting_.fetch_add(1) > 0) return;
  suspected_.clear();
  looked_ = Clock::now();
  lines_[process_].wait.store(++wait_, std::memory_order_release);
}

void Waits::end() {
  if (left_out) return;
  waiting_.fetch_sub(1);
  lines_[process_].process.store(0, std::memory_order_release);
}

void Waits::look(int process) {
  if (left_out) return;
  Line& mine = lines_[process_];
  const bool stuck = waiting_.load() == 1 && asynchronous_.load(std::memory_order_relaxed) == 0;
  mine.process.store(stuck ? process + 1 : 0, std::memory_order_release);
  mine.polls.fetch_add(1, std::memory_order_acq_rel);
  if (!stuck) return;
  const bool told = mine.condemned.load(std::memory_order_acquire) == wait_;
  if (!told && Clock::now() - looked_ < kInterval) return;
  looked_ = Clock::now();
  std::vector<Seen> now = cycle();
  if (told || confirmed(now)) throw Deadlock(condemn(now));
  suspected_ = std::move(now);
}

// Lets all members of the cycle know, so that each of them throws.
std::vector<int> Waits::condemn(const std::vector<Seen>& cycle) {
  std::vector<int> members;
  for (const Seen& s : cycle) {
    lines_[s.process].condemned.store(s.wait, std::memory_order_release);
    members.push_back(s.process);
  }
  return members;
}

// The cycle through this process, beginning with it; empty if there is none.
std::vector<Waits::Seen> Waits::cycle() const {
  std::vector<Seen> path;
  int at = process_;
  do {
    const Line& line = lines_[at];
    path.push_back({at, line.wait.load(std::memory_order_acquire),
                    line.polls.load(std::memory_order_acquire)});
    at = line.process.load(std::memory_order_acquire) - 1;
    if (at == kNobody || int(path.size()) > processes_) return {};
  } while (at != process_);
  return path;
}

// Whether this is the cycle that was suspected before, and all have looked at their conditions
// since.
bool Waits::confirmed(const std::vector<Seen>& now) const {
  if (now.empty() || now.size() != suspected_.size()) return false;
  for (size_t i = 0; i < now.size(); i++) {
    const Seen &before = suspected_[i], &after = now[i];
    if (after.process != before.process || after.wait != before.wait ||
        after.polls < before.polls + kLooks)
      return false;
  }
  return true;
}

}  // namespace pycomm::shm
