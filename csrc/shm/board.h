// The board of a communicator: one line a rank, where every operation opens; and staging memory.
//
// Memory-ordering rules. A line, a phase and a ring are written by their rank only, and published
// by a Counter (release) that others acquire. Of lines there are two: operation k uses number k mod
// 2. A rank opens k+2 only after it has seen all lines of k+1, which its peers publish when they
// are done with k: so nobody can still be reading what k+2 overwrites. What k+1 stages in the ring
// comes behind what k did, and both fit in it together. With groups it has seen lines by which
// leaders say that they have (release and acquire, twice).
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flight.h"
#include "shm/copy.h"
#include "shm/counter.h"
#include "shm/failure.h"
#include "shm/groups.h"
#include "shm/line.h"
#include "shm/segment.h"
#include "shm/slab.h"
#include "shm/staging.h"
#include "shm/waits.h"
#include "shm/watchdog.h"

namespace pycomm::shm {

class Mailbox;

// What a waiting thread does besides waiting.
struct Idle {
  virtual ~Idle() = default;
  virtual void park() {
  }  // the wait became long, or the work is: let other threads of this process run
  virtual void poll() {}  // every few milliseconds; may throw
  virtual void late(int rank, int peer,
                    double waited_s) {  // once, when half of the timeout is over
    (void)rank, (void)peer, (void)waited_s;
  }
  bool background = false;  // its core is for others, who compute: it sleeps instead of spinning
};

// When the ordinary memory of other ranks may be read directly.
enum class PeerReads { never, in_huge_pages, always };

// What a rank opens, see Common. `header` is for ranks that do not know the detail, see
// Board::header.
struct Call {
  Call(uint64_t fingerprint) : fingerprint(fingerprint) {}
  uint64_t fingerprint;
  uint64_t detail = 0;
  std::span<const int64_t> header = {};
  bool remote = false;           // whether it can take Path::remote; the same on every rank
  bool read_by_all = false;      // all that is offered is read by every rank: staged whole if small
  const void* target = nullptr;  // without data: symmetric memory that others may write to
};

class Board {
 public:
  static constexpr size_t kSmallBytes = size_t(128) << 10;    // beyond, other threads may run
  static constexpr size_t kWholeBytes = size_t(512) << 10;    // at most, to stage data whole
  static constexpr size_t kSegmentBytes = size_t(256) << 10;  // pieces beyond
  static constexpr size_t kRingBytes = size_t(2) << 20;       // of staging, see decision 13
  static constexpr size_t kInPlaceBytes = 4096;  // below, copying is cheaper than closing
  static constexpr size_t kRemoteBytes = size_t(256) << 10;  // below, copying twice is cheaper
  static constexpr size_t kTargetBytes = size_t(256) << 10;  // below, one rank alone is as fast
  static constexpr size_t kHeaderWords = 80;

  static size_t bytes(int size);

  // `crowded`: more ranks than cores, so never spin long. `timeout` in seconds. `groups`: the same
  // on all ranks; none for everyone to read all lines.
  Board(Segment segment, int rank, int size, bool crowded, double timeout, Groups groups);
  ~Board();

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Segment& segment() const { return segment_; }
  void close_descriptor() { segment_.close_descriptor(); }
  uint64_t waited_ns() const { return waited_ns_; }

  // What was done the quick way, which Python's own counters do not see.
  enum Kind {
    kBarrier,
    kAllReduce,
    kBroadcast,
    kAllGather,
    kReduceScatter,
    kReduce,
    kGather,
    kScatter,
    kAllToAll,
    kKinds
  };
  struct Count {
    uint64_t operations = 0, bytes = 0, busy_ns = 0, waited_ns = 0;
  };
  Count& counted(size_t kind) { return counts_[kind]; }
  bool quick = true;
  flight::Flight* flight = nullptr;  // where they are recorded
  PeerReads peer_reads = PeerReads::in_huge_pages;
  uint64_t peer_reads_done = 0;  // chunks of others
  Staging staging;

  // Opens an operation: publishes the call and `bytes` at `data` (null: offers nothing), waits for
  // all, and throws Mismatch if calls differ. After a Failure it throws that again.
  Path open(const Call&, const void* data, size_t bytes, Idle&);

  // After open(): the header that rank r gave, undefined beyond its length.
  const int64_t* header(int r) const { return headers_[2 * r + sequence_ % 2].words; }

  // After open() returned staged or in_place: what rank r offered.
  char* source(int r);
  const std::vector<char*>& sources(size_t offset_bytes = 0);  // valid until the next call

  // After open() returned in_place or remote: whether others may write what rank r gets, and where.
  bool has_target(int r) { return line(r).offer == Offer::target; }
  char* target(int r) { return slab_memory(r); }

  // Unless open() returned pipelined: copies `bytes` at `offset` of what rank r offered. Throws
  // Unreadable or Departed, and then departs, so that nobody waits for this rank.
  void take(int r, size_t offset, char* to, size_t bytes, const CopyOut&);

  // Returns when all ranks have called it as often as this one.
  void barrier(Idle&);

  // After open() returned pipelined: that `count` pieces of at most `bytes` follow, and the staging
  // of rank r for piece k. Others may read piece k until they have passed the barrier after next.
  void cut(size_t count, size_t bytes);

  // The size of pieces of `bytes` where some ranks only bring and the others only take: four at
  // least, so that both are busy, unless ranks share cores.
  size_t one_way_bytes(size_t bytes) const {
    const size_t quarter = in_lines(bytes / 4);
    return crowded_ ? kSegmentBytes : std::max(kSegmentBytes / 4, std::min(quarter, kSegmentBytes));
  }
  char* piece(int r, size_t k) { return ring(r) + (first_piece(r) + k) % slots_ * stride_; }

  // Copies to this rank's piece k. What is computed is better brought than written there if
  // past_caches(k).
  void bring(size_t k, size_t offset, const char* from, size_t bytes) {
    if (bytes) staging.write(k, piece(rank_, k) + offset, from, bytes);
  }
  bool past_caches(size_t k) const { return staging.past_caches(k); }

  // After Mismatch: everybody's text about this operation, "" for ranks that give none in time.
  std::vector<std::string> exchange_notes(const std::string& mine, Idle&);

  // Publish waiting in `waits`, where rank r is processes[r].
  void watch(Waits* waits, std::vector<int> processes) {
    waits_ = waits;
    processes_ = std::move(processes);
  }

  // Make progress with the messages of this process while it waits here.
  void serve(Mailbox* mailbox) { mailbox_ = mailbox; }
  // Throw Died once one of `members` has, which are processes of `watchdog`.
  void heed(Watchdog* watchdog, std::vector<int> members) {
    watchdog_ = watchdog;
    members_ = std::move(members);
  }
  // Operations that an engine has yet to finish, which calls from elsewhere must not overtake.
  void asynchronous(int more) {
    asynchronous_.fetch_add(more, std::memory_order_acq_rel);
    if (waits_) waits_->asynchronous(more);
  }
  bool engaged() const { return asynchronous_.load(std::memory_order_acquire) > 0; }

  // This rank will not take part any more; whoever waits for it gets Departed.
  void depart();
  bool has_departed(int r) const { return presence_[r].departed.load(std::memory_order_acquire); }

 private:
  struct alignas(128) Phase {
    Counter passed;
  };
  struct alignas(128) Header {
    int64_t words[kHeaderWords];
  };
  struct alignas(128) Presence {
    std::atomic<uint32_t> departed;
    int32_t pid;
    uint64_t probe_at, probe;  // the address of a number in that process, and the number
  };
  struct alignas(128) Note {
    Counter epoch;
    char text[1008];
  };

  // Nodes are ranks, and from `size` on groups, whose lines and phases are their leaders'.
  using CounterOf = Counter& (Board::*)(int node);
  Counter& opened(int node) { return line(node).epoch; }
  Counter& passed(int node) { return phases_[node].passed; }

  Line& line(int node) { return lines_[2 * node + sequence_ % 2]; }
  char* ring(int r) { return rings_ + size_t(r) * kRingBytes; }
  size_t first_piece(int r) { return (line(r).staged_at + stride_ - 1) / stride_; }
  void stage(const void* data, size_t bytes);
  char* slab_memory(int r);
  void offer(const Call&, const void* data, size_t bytes, bool reads);
  bool worth_reading(const void* data, size_t bytes) const;
  bool can_read_peers();
  template <class Failed>
  [[noreturn]] void fail(Failed);
  void find_nodes();
  template <CounterOf of>
  void await_all(const std::vector<int>& nodes, uint64_t target, Idle&);
  void await_long(CounterOf, int node, uint64_t target, Idle&);
  int missing(CounterOf, int node, uint64_t target);
  bool member_died() const;
  void check(const Counter&, uint64_t target, int peer, double waited_s, Idle&);

  Segment segment_;
  int rank_, size_;
  bool crowded_;
  int spins_;
  const Groups groups_;
  std::optional<int> led_;                  // the node of the group that this rank leads
  std::vector<int> members_of_led_, read_;  // nodes: the others of that group; what everyone reads
  // Staged whole up to here. Where ranks share cores, a barrier costs more than a copy.
  size_t whole_bytes_;
  double timeout_;
  uint64_t sequence_ = 0, phase_ = 0, waited_ns_ = 0;
  size_t staged_ = 0;              // the end of what this rank staged last in its ring
  size_t stride_ = 0, slots_ = 0;  // of the pieces of this operation
  Count counts_[kKinds];
  std::atomic<int> asynchronous_ = 0;
  std::exception_ptr failure_;
  std::optional<bool> reads_;  // whether reading peers works; unknown until it is tried
  const uint64_t probe_;
  std::vector<char*> sources_;
  Waits* waits_ = nullptr;
  Mailbox* mailbox_ = nullptr;
  std::vector<int> processes_;
  Watchdog* watchdog_ = nullptr;
  std::vector<int> members_;
  Line* lines_;
  Header* headers_;
  Phase* phases_;
  Presence* presence_;
  Note* notes_;
  char* rings_;
  std::vector<std::vector<std::pair<uint64_t, std::shared_ptr<Segment>>>>
      peer_slabs_;  // by rank: nonce → map
};

}  // namespace pycomm::shm
