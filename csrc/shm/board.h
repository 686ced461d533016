// The board of a communicator: one line a rank, where every operation opens; and staging memory.
//
// Memory-ordering rules. A line, a phase and a staging area are written by their rank only, and
// published by a Counter (release) that others acquire. Lines and small staging come in two:
// operation k uses number k mod 2. A rank opens k+2 only after it has seen all lines of k+1, which
// its peers publish when they are done with k: so nobody can still be reading what k+2 overwrites.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "shm/counter.h"
#include "shm/failure.h"
#include "shm/segment.h"
#include "shm/slab.h"
#include "shm/waits.h"

namespace pycomm::shm {

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

// How a rank offers its data in an opening.
enum class Offer : uint32_t { nothing, line, staged, slab, ordinary };

struct alignas(128) Line {
  Counter epoch;
  uint64_t fingerprint;
  Place place;
  Offer offer;
  static constexpr size_t kPayloadBytes = 72;
  alignas(8) char payload[kPayloadBytes];
};
static_assert(sizeof(Line) == 128);

// What the opening found out: all data readable where `Board::source` says, in staging (no closing
// is needed) or in place (close() before anyone returns); or to be moved through staging piece by
// piece.
enum class Path { staged, in_place, pipelined };

class Board {
 public:
  static constexpr size_t kSmallBytes = size_t(128) << 10;    // room to stage data whole
  static constexpr size_t kSegmentBytes = size_t(128) << 10;  // pieces beyond
  static constexpr size_t kInPlaceBytes = 4096;  // below, copying is cheaper than closing

  static size_t bytes(int size);

  // `crowded`: more ranks than cores, so never spin long. `timeout` in seconds.
  Board(Segment segment, int rank, int size, bool crowded, double timeout);
  ~Board();

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Segment& segment() const { return segment_; }
  void close_descriptor() { segment_.close_descriptor(); }
  uint64_t waited_ns() const { return waited_ns_; }

  // What was done the quick way, which Python's own counters do not see.
  enum Kind { kBarrier, kAllReduce, kBroadcast, kAllGather, kReduceScatter, kKinds };
  struct Count {
    uint64_t operations = 0, bytes = 0, busy_ns = 0, waited_ns = 0;
  };
  Count& counted(size_t kind) { return counts_[kind]; }
  bool quick = true;

  // Opens an operation: publishes the fingerprint and `bytes` at `data` (null: offers nothing),
  // waits for all, and throws Mismatch if fingerprints differ. After a Failure it throws that
  // again.
  Path open(uint64_t fingerprint, const void* data, size_t bytes, Idle&);

  // After open() returned staged or in_place: what rank r offered.
  char* source(int r);
  const std::vector<char*>& sources(size_t offset_bytes = 0);  // valid until the next call

  // Returns when all ranks have called it as often as this one.
  void barrier(Idle&);

  // Staging for pieces: what a rank brings and what it has made of it, two of each.
  char* piece_in(int r, size_t k) { return pieces(r) + k % 2 * kSegmentBytes; }
  char* piece_out(int r, size_t k) { return pieces(r) + (2 + k % 2) * kSegmentBytes; }

  // After Mismatch: everybody's text about this operation, "" for ranks that give none in time.
  std::vector<std::string> exchange_notes(const std::string& mine, Idle&);

  // Publish waiting in `waits`, where rank r is processes[r].
  void watch(Waits* waits, std::vector<int> processes) {
    waits_ = waits;
    processes_ = std::move(processes);
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
  struct alignas(128) Presence {
    std::atomic<uint32_t> departed;
    int32_t pid;
  };
  struct alignas(128) Note {
    Counter epoch;
    char text[1008];
  };
  static constexpr size_t kStagingBytes = 2 * kSmallBytes + 4 * kSegmentBytes;

  Line& line(int r) { return lines_[2 * r + sequence_ % 2]; }
  char* staging(int r) { return staging_ + size_t(r) * kStagingBytes; }
  char* pieces(int r) { return staging(r) + 2 * kSmallBytes; }
  char* small(int r) { return staging(r) + sequence_ % 2 * kSmallBytes; }
  char* slab_memory(int r);
  void offer(const void* data, size_t bytes);
  template <class Failed>
  [[noreturn]] void fail(Failed);
  Path agree();
  void await(Counter&, uint64_t target, int peer, Idle&);
  void await_long(Counter&, uint64_t target, int peer, Idle&);
  void check(const Counter&, uint64_t target, int peer, double waited_s, Idle&);

  Segment segment_;
  int rank_, size_, spins_;
  // Staged whole up to here. Where ranks share cores, a barrier costs more than a copy.
  size_t small_bytes_;
  // than a copy
  double timeout_;
  uint64_t sequence_ = 0, phase_ = 0, waited_ns_ = 0;
  Count counts_[kKinds];
  std::atomic<int> asynchronous_ = 0;
  std::exception_ptr failure_;
  std::vector<char*> sources_;
  Waits* waits_ = nullptr;
  std::vector<int> processes_;
  Line* lines_;
  Phase* phases_;
  Presence* presence_;
  Note* notes_;
  char* staging_;
  std::vector<std::vector<std::pair<uint64_t, std::shared_ptr<Segment>>>>
      peer_slabs_;  // by rank: nonce → map
};

}  // namespace pycomm::shm
