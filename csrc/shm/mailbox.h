// All messages of a process: matches what arrives with what was posted, by communicator, source and
// tag, in the order of both.
//
// Node-mates write records into this process's inbox. Other transports hand over what arrives there
// by `deliver`, and move the data themselves.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "shm/doorbell.h"
#include "shm/mate.h"
#include "shm/message.h"
#include "shm/segment.h"

namespace pycomm::shm {

class Mailbox {
 public:
  static constexpr int kEverybody = -1;
  static constexpr size_t kLargeBytes = Mate::kInlineBytes;

  // `mates`: how many processes, this one included; it is number `me` of them.
  // `direct`: ordinary memory may be read and written by mates, where the system lets them.
  // `crowded`: more ranks than cores, so a sender that helps its receiver only takes its core.
  Mailbox(int mates, int me, bool direct, bool crowded);
  bool crowded() const { return crowded_; }

  const std::shared_ptr<Segment>& segment() const { return inbox_; }
  void close_descriptor() { inbox_->close_descriptor(); }

  // A number in this process's ordinary memory: who can read it there can read all of it.
  uint64_t secret() const { return secret_; }
  uint64_t secret_address() const { return reinterpret_cast<uint64_t>(&secret_); }

  struct Process {
    int pid;
    uint64_t secret, secret_address;
  };
  // Connects mate `number` by its inbox, and tries whether its ordinary memory can be read.
  void connect(int number, std::unique_ptr<Segment> inbox, const Process&);

  // Starts to send to a mate. The caller may drop the handle once it is done.
  std::shared_ptr<Send> send(int mate, const Envelope&, const char* data);

  // Posts a receive: it takes the first message that matches and that no earlier one took.
  void receive(const std::shared_ptr<Receive>&);

  // The short way of small messages between node-mates: each says whether it could be done now.
  bool send_now(int mate, const Envelope&, const char* data);
  bool receive_now(int mate, Receive&);

  // A message that came elsewhere; small ones with their data, large ones (null) with a number.
  // Returns the receive that takes it, if one was posted.
  std::shared_ptr<Receive> deliver(const Envelope&, const char* data, uint64_t number);

  // Reads what has come, sends what had no room, copies what is asked for. Cheap if there is
  // nothing; from `mate` only, unless that is kEverybody.
  void progress(int mate = kEverybody);

  // Whether others may wait for progress of this process.
  bool is_pending() const { return pending_.load(std::memory_order_relaxed); }

  // Drops what is left of a communicator, and what still comes for it.
  void forget(uint32_t context);

  // Nobody waits for a receive any more: it takes no message.
  void withdraw(const Receive&);

  Doorbell& doorbell() { return *doorbell_; }
  Mate& mate(int number) { return *mates_[number]; }

 private:
  struct Origin {
    Mate* from;
    Block* block;
    const char* data;
    uint64_t elsewhere;
  };
  // So many or so large ones are left with their senders: then they are copied, to let others pass.
  static constexpr int kMostUntaken = Lane::kBlocks / 2;
  static constexpr size_t kMostUntakenBytes = Mate::kMostSlotBytes / 4;
  struct Arrived : Origin {
    Envelope envelope;
    std::shared_ptr<void> memory;
  };
  void read(Mate&);
  void flush(Mate&);
  void drop_done();
  static void refuse(const Origin&);
  void keep(const Envelope&, Origin);
  static std::shared_ptr<void> take_alone(const Envelope&, const Origin&);
  static bool too_many_untaken(const Origin&, const Envelope&);
  static void count_untaken(const Origin&, const Envelope&, int more);
  std::shared_ptr<Receive> arrive(const Envelope&, Origin);
  void take_over(const std::shared_ptr<Receive>&, const Envelope&, const Origin&);
  static void hand_over(Receive&, const Envelope&, const Origin&);
  void note_pending();

  std::shared_ptr<Segment> inbox_;
  Doorbell* doorbell_;
  int me_;
  bool direct_, crowded_;
  uint64_t secret_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Mate>> mates_;
  std::vector<std::shared_ptr<Receive>> posted_;
  std::list<Arrived> arrived_;
  std::unordered_set<uint32_t> closed_;           // communicators
  std::vector<std::shared_ptr<Receive>> active_;  // large ones on their way
  int queued_ = 0;                                // messages that wait for room
  std::atomic<bool> pending_ = false;
};

}  // namespace pycomm::shm
