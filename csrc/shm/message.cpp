#include "shm/message.h"

#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "shm/failure.h"
#include "shm/mailbox.h"

namespace pycomm::shm {
namespace {

// Lets one thread of this process at a time work on a message; others pass on.
class Turn {
 public:
  explicit Turn(std::atomic_flag& busy) : busy_(busy), mine_(!busy.test_and_set()) {}
  ~Turn() {
    if (mine_) busy_.clear();
  }
  bool mine() const { return mine_; }

 private:
  std::atomic_flag& busy_;
  bool mine_;
};

// Freed memory of messages, for the next of the same size: fresh pages cost more than the copy.
class Spares {
 public:
  static Spares& instance() {
    static Spares* spares = new Spares;  // never destroyed: arrays may outlive everything else
    return *spares;
  }

  void* get(size_t bytes) {
    std::lock_guard lock(mutex_);
    auto found = spare_.find(bytes);
    if (found == spare_.end()) return allocate(bytes);
    void* memory = found->second;
    spare_.erase(found);
    kept_bytes_ -= bytes;
    return memory;
  }

  void put(void* memory, size_t bytes) {
    std::lock_guard lock(mutex_);
    if (kept_bytes_ + bytes > kMostBytes) return ::operator delete(memory, kAlign);
    spare_.emplace(bytes, memory);
    kept_bytes_ += bytes;
  }

  static void* allocate(size_t bytes) { return ::operator new(bytes, kAlign); }
  static constexpr auto kAlign = std::align_val_t(64);

 private:
  static constexpr size_t kMostBytes = size_t(256) << 20;
  std::mutex mutex_;
  std::multimap<size_t, void*> spare_;
  size_t kept_bytes_ = 0;
};

constexpr size_t kWorthKeeping = 64 << 10;

}  // namespace

std::shared_ptr<void> message_memory(size_t bytes) {
  if (bytes < kWorthKeeping)
    return {Spares::allocate(bytes), [](void* p) { ::operator delete(p, Spares::kAlign); }};
  return {Spares::instance().get(bytes), [bytes](void* p) { Spares::instance().put(p, bytes); }};
}

bool Send::advance() {
  if (done.load(std::memory_order_acquire)) return true;
  Turn turn(busy);
  if (!turn.mine() || done || !block) return done;
  try {
    step(*block);
  } catch (...) {
    error = std::current_exception();
    done = true;
  }
  return done;
}

void Send::step(Block& b) {
  if (b.ended_badly()) {
    b.go(Stage::free);
    throw Unreachable{};
  }
  const Stage stage = b.now();
  if (stage != Stage::moving && stage != Stage::acknowledged) return;
  if (stage == Stage::moving && helps) help(b);
  if (b.complete()) {
    b.acknowledge();
    done = true;
  }
}

void Send::help(Block& b) {
  if (!target) {
    if (!b.target.place.serial && !to->within_reach()) return;
    target.emplace(to->pid(), b.target);
  }
  try {
    b.copy_pieces(
        [&](size_t offset, size_t bytes) { target->write(data + offset, offset, bytes); });
  } catch (...) {
    b.go(Stage::failed);
    throw;
  }
  if (b.complete()) to->doorbell().ring();
}

void Send::settle() {
  Turn turn(busy);
  Block* const b = block;
  if (!turn.mine() || done || !b || b->now() != Stage::offered) return;
  if (envelope.bytes > Mate::kMostSlotBytes) return;
  char* slot = to->take_slot(b, envelope.bytes);
  if (!slot) return;
  if (!b->change(Stage::offered, Stage::filling)) return to->give_back(b);
  std::memcpy(slot, data, envelope.bytes);
  b->source = Location::of(slot);
  if (!b->change(Stage::filling, Stage::filled)) return to->give_back(b);
  to->doorbell().ring();
  done = true;
}

void Receive::accept(const Envelope& e) {
  envelope = e;
  disagrees = out && !wanted.same_array(e);
  matched.store(true, std::memory_order_release);
}

void Receive::find_memory() {
  data = out;
  if (out && !disagrees) return;
  memory = message_memory(envelope.bytes);
  data = static_cast<char*>(memory.get());
}

bool Receive::advance() {
  if (done.load(std::memory_order_acquire)) return true;
  Turn turn(busy);
  if (!turn.mine() || done || !block) return done;
  try {
    step();
  } catch (...) {
    error = std::current_exception();
    finish();
  }
  return done;
}

void Receive::step() {
  if (block->now() == Stage::failed) {
    block->go(Stage::free);
    throw Unreachable{};
  }
  if (origin && data) return move();
  if (block->change(Stage::offered, Stage::taken)) {
    take();
    move();
  } else if (block->now() == Stage::filled) {
    empty_slot();
  }
}

void Receive::take() {
  find_memory();
  origin.emplace(from->pid(), block->source);
  block->target = Location::of(data);
  block->claimed = block->done = 0;
  block->go(Stage::moving);
  from->doorbell().ring();
}

bool Receive::take_alone() {
  const bool offered = block->change(Stage::offered, Stage::taken);
  if (!offered && block->now() != Stage::filled) return false;
  find_memory();
  try {
    PeerMemory(from->pid(), block->source).read(data, 0, envelope.bytes);
  } catch (...) {
    block->go(Stage::failed);
    from->doorbell().ring();
    throw;
  }
  block->claimed = block->done = block->pieces();
  block->go(offered ? Stage::moving : Stage::returned);
  if (offered) block->acknowledge();
  from->doorbell().ring();
  return true;
}

void Receive::move() {
  try {
    block->copy_pieces(
        [&](size_t offset, size_t bytes) { origin->read(data + offset, offset, bytes); });
  } catch (...) {
    block->go(Stage::failed);
    from->doorbell().ring();
    throw;
  }
  if (!block->complete()) return;
  block->acknowledge();
  from->doorbell().ring();
  finish();
}

// Keeps the sender's slot until the array on it is dropped, or copies the message out of it.
void Receive::empty_slot() {
  const PeerMemory slot(from->pid(), block->source);
  if (auto credit = may_keep && !out ? from->keep(block) : nullptr) {
    data = slot.mapped();
    memory = std::shared_ptr<void>(data, [slot, credit = std::move(credit)](void*) {});
  } else {
    find_memory();
    slot.read(data, 0, envelope.bytes);
    block->go(Stage::returned);
    from->doorbell().ring();
  }
  finish();
}

}  // namespace pycomm::shm
