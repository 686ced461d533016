#include "shm/watchdog.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <mutex>
#include <utility>
#include <vector>

#include "fate.h"
#include "quiet_thread.h"

namespace pycomm::shm {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;

// Of this process; on_exit has them leave. Never freed, as that runs last of all.
std::mutex& mutex = *new std::mutex;
std::vector<std::weak_ptr<Watchdog>>& watchdogs = *new std::vector<std::weak_ptr<Watchdog>>;

int64_t time_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * kSecondNs + t.tv_nsec;
}

timespec to_timespec(int64_t ns) { return {ns / kSecondNs, ns % kSecondNs}; }

void sleep_ns(int64_t ns) {
  const timespec t = to_timespec(ns);
  nanosleep(&t, nullptr);
}

// What sched_setattr takes; the C library has no name for it, and the kernel's header clashes.
struct Attributes {
  uint32_t bytes = sizeof(Attributes), policy = 0;
  uint64_t flags = 0;
  int32_t nice;
  uint32_t priority = 0;
  uint64_t slice_ns = 100'000, deadline_ns = 0, period_ns = 0;
};

// A launcher ends the living within milliseconds: run at once when woken, as far as is allowed.
void hurry() {
  for (int nice : {-20, getpriority(PRIO_PROCESS, 0)}) {
    Attributes attributes{.nice = nice};
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  }
}

void make_robust(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

// Whether a mutex has no owner any more, after `wait_ns` at the latest.
bool abandoned(pthread_mutex_t& mutex, int64_t wait_ns) {
  const timespec until = to_timespec(time_ns(CLOCK_REALTIME) + wait_ns);
  const int result = pthread_mutex_timedlock(&mutex, &until);
  if (result == EOWNERDEAD) pthread_mutex_consistent(&mutex);
  const bool mine = result == 0 || result == EOWNERDEAD;
  if (mine) pthread_mutex_unlock(&mutex);
  return mine;
}

}  // namespace

size_t Watchdog::bytes(int processes) {
  return sizeof(Table) + sizeof(Line) * size_t(processes) + alignof(Table);
}

Watchdog::Watchdog(Segment segment, int process, int processes, std::string host)
    : segment_(std::move(segment)),
      process_(process),
      processes_(processes),
      host_(std::move(host)) {
  const auto address = reinterpret_cast<uintptr_t>(segment_.data());
  table_ = reinterpret_cast<Table*>((address + alignof(Table) - 1) & ~(alignof(Table) - 1));
}

std::shared_ptr<Watchdog> Watchdog::start(Segment segment, int process, int processes,
                                          std::string host) {
  std::shared_ptr<Watchdog> self(
      new Watchdog(std::move(segment), process, processes, std::move(host)));
  start_quiet_thread([self] { self->run(); });
  self->holding_.wait(false);
  const std::lock_guard lock(mutex);
  [[maybe_unused]] static const int registered = on_exit(leave_all, nullptr);
  std::erase_if(watchdogs, [](auto& other) { return other.expired(); });
  watchdogs.push_back(self);
  return {self.get(), [self](Watchdog*) { self->stopping_ = true; }};
}

// Whoever exits with another status has failed, and is to be told of.
void Watchdog::leave_all(int status, void*) {
  const std::lock_guard lock(mutex);
  for (auto& weak : watchdogs)
    if (auto watchdog = weak.lock(); watchdog && status == 0) watchdog->leave();
}

void Watchdog::leave() {
  int expected = running;
  if (getpid() == pid_) line(process_).phase.compare_exchange_strong(expected, left);
}

void Watchdog::mark(int process) {
  if (line(process).phase.exchange(found_dead) != found_dead) publish(process, kUnknownFate);
}

void Watchdog::publish(int p, int fate) {
  line(p).fate = fate;
  line(p).death = table_->deaths.fetch_add(1) + 1;
}

std::vector<int> Watchdog::dead() const {
  std::vector<int> found;
  for (int p = 0; p < processes_; p++)
    if (is_dead(p)) found.push_back(p);
  std::sort(found.begin(), found.end(),
            [this](int a, int b) { return line(a).death.load() < line(b).death.load(); });
  return found;
}

void Watchdog::hush() { table_->told_ns = time_ns(CLOCK_MONOTONIC); }

std::string Watchdog::fate(int process) const { return in_words(line(process).fate); }

void Watchdog::run() {
  hurry();
  hold();
  while (!stopping_ && !watching_) sleep_ns(kSecondNs / 1000);
  for (int peer = next(); !stopping_ && peer != process_; peer = next()) {
    if (abandoned(line(peer).alive, kSecondNs))
      bury(peer);
    else
      look_at_all();
  }
  leave();
  pthread_mutex_unlock(&line(process_).alive);
}

void Watchdog::hold() {
  Line& mine = line(process_);
  make_robust(mine.alive);
  pthread_mutex_lock(&mine.alive);
  mine.pid = pid_;
  mine.phase = running;
  holding_ = true;
  holding_.notify_all();
}

// The next living process of this host; this one if there is no other.
int Watchdog::next() const {
  int p = process_;
  do p = (p + 1) % processes_;
  while (p != process_ && line(p).phase != running);
  return p;
}

void Watchdog::look_at_all() {
  for (int p = 0; p < processes_; p++)
    if (p != process_ && line(p).phase == running && abandoned(line(p).alive, 0)) bury(p);
}

// Whoever is the first to see a death tells of it.
void Watchdog::bury(int p) {
  const int fate = fate_of(line(p).pid);
  int expected = running;
  if (!line(p).phase.compare_exchange_strong(expected, found_dead)) return;
  // Before anyone raises because of it, and ends: then the launcher ends this process, too.
  const int64_t hushed_ns = table_->told_ns + kSecondNs - time_ns(CLOCK_MONOTONIC);
  if (hushed_ns <= 0) tell(p, fate);
  publish(p, fate);
  if (hushed_ns <= 0) return;
  sleep_ns(hushed_ns);
  tell(p, fate);
}

void Watchdog::tell(int p, int fate) {
  hush();
  const std::string text = "pycomm: rank " + std::to_string(process_) + ": rank " +
                           std::to_string(p) + " of " + std::to_string(processes_) + " (process " +
                           std::to_string(line(p).pid) + " on host " + host_ + ") " +
                           in_words(fate) + "\n";
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) return;  // nobody is left to be told
}

}  // namespace pycomm::shm
