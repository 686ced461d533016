// A node-mate: the messages that it and this process write for each other.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "shm/doorbell.h"
#include "shm/message.h"
#include "shm/ring.h"
#include "shm/segment.h"

namespace pycomm::shm {

// What one process writes for another: small messages whole, large ones by a block.
struct Lane {
  static constexpr int kBlocks = 64;
  RingMemory ring;
  alignas(128) std::atomic<uint32_t> reached;  // whether the reader can read the writer's memory
  Block blocks[kBlocks];
};

// A node-mate, or this process itself.
class Mate {
 public:
  static constexpr size_t kInlineBytes = 32768;

  static constexpr size_t kMostSlotBytes = size_t(256) << 20, kMostKeptBytes = kMostSlotBytes / 2;
  static constexpr int kMostKept = Lane::kBlocks / 4;  // so that the sender never lacks a block

  // `in` lies in `ours`, `out` and the doorbell in `theirs`.
  Mate(std::shared_ptr<Segment> ours, Lane* in, std::unique_ptr<Segment> theirs, Lane* out,
       Doorbell* doorbell, int pid);
  ~Mate();

  bool push(const Envelope&, const char* data);  // a small one; false: no room now
  bool push(const std::shared_ptr<Send>&);
  bool reaches_us() const { return out_->reached.load(std::memory_order_relaxed); }
  bool within_reach() const { return in_->reached.load(std::memory_order_relaxed); }
  char* take_slot(Block*, size_t bytes);  // for the block; null: too much is out already
  void give_back(Block*);
  // Credit to keep a slot of this mate for a while: null if too much is kept already.
  std::shared_ptr<void> keep(Block*);
  Doorbell& doorbell() { return *doorbell_; }
  int pid() const { return pid_; }

  // The oldest message that was not dropped yet: its envelope, and its data or its block.
  struct Front {
    const char* data = nullptr;
    Block* block = nullptr;
  };
  bool front(Envelope&, Front&);
  void drop_front();

  // Large messages that came and nobody has taken yet, and what lies in slots for them.
  int untaken = 0;
  size_t untaken_bytes = 0;

  std::deque<std::shared_ptr<Send>> waiting;  // for room, in the order of their sending

 private:
  struct Slot {
    char* memory;
    size_t bytes;
    Block* block;  // null: free
  };
  bool offer(const std::shared_ptr<Send>&, Block*);
  Block* free_block();
  bool is_free(int number);
  void reap();
  bool make_room(size_t bytes);
  void drop_free_slots();

  std::shared_ptr<Segment> ours_;
  std::unique_ptr<Segment> theirs_;
  Lane *in_, *out_;
  RingReader incoming_;
  RingWriter outgoing_;
  Doorbell* doorbell_;
  int pid_;
  uint32_t next_block_ = 0;
  std::shared_ptr<Send> offered_[Lane::kBlocks];  // what a block was last used for
  std::shared_ptr<std::atomic<size_t>> kept_bytes_ = std::make_shared<std::atomic<size_t>>(0);
  std::mutex slots_mutex_;
  std::vector<Slot> slots_;
};

}  // namespace pycomm::shm
