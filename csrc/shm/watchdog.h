// Which processes of a job have died, for everyone on this host to see; and who tells the user.
//
// A thread of each process holds a robust mutex for as long as it lives, and sleeps on that of the
// next living node-mate. The kernel hands a dead owner's mutex on before it closes the owner's
// files, which is what launchers see: so there is time to name the dead before the launcher ends
// the living. Once a second all mutexes are tried, should the one who sleeps on a dead one be
// stopped.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shm/segment.h"

namespace pycomm::shm {

class Watchdog {
 public:
  static size_t bytes(int processes);

  // Starts the thread, which holds this process's mutex on return. When the last owner of what is
  // returned lets go, the thread ends within a second, and to the others this process has left; not
  // at once, as Python also lets go when it ends, and only then is the exit status decided.
  static std::shared_ptr<Watchdog> start(Segment, int process, int processes, std::string host);

  const Segment& segment() const { return segment_; }
  void close_descriptor() { segment_.close_descriptor(); }

  // Begins to watch the others: once all processes of this host have started.
  void watch() { watching_ = true; }

  // A process was found dead by other means, for instance on another host.
  void mark(int process);

  // The user has been told why the job ends: name nobody who dies within a second from now.
  void hush();

  // How many died; to be looked at before asking for each.
  int deaths() const { return table_->deaths.load(std::memory_order_acquire); }
  bool is_dead(int process) const { return line(process).death.load(std::memory_order_acquire); }
  std::vector<int> dead() const;        // in the order of their deaths
  std::string fate(int process) const;  // of a dead one, in words

 private:
  enum Phase { absent, running, left, found_dead };
  struct alignas(128) Line {
    pthread_mutex_t alive;
    std::atomic<int32_t> phase, pid, fate;
    std::atomic<int32_t> death;  // its number, from 1; 0 is none
  };
  struct alignas(128) Table {
    std::atomic<int64_t> told_ns;
    std::atomic<int32_t> deaths;
  };

  Watchdog(Segment, int process, int processes, std::string host);
  Line& line(int p) const { return reinterpret_cast<Line*>(table_ + 1)[p]; }
  static void leave_all(int status, void*);
  void leave();
  void run();
  void hold();
  int next() const;
  void look_at_all();
  void bury(int p);
  void publish(int p, int fate);
  void tell(int p, int fate);

  Segment segment_;
  Table* table_;
  const int process_, processes_, pid_ = getpid();
  const std::string host_;
  std::atomic<bool> holding_ = false, watching_ = false, stopping_ = false;
};

}  // namespace pycomm::shm
