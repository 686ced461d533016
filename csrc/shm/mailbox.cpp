#include "shm/mailbox.h"

#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace pycomm::shm {
namespace {

// How a message lies in a ring: this, its shape, and its data or the number of a block.
struct Head {
  Record record;
  uint32_t context;
  int32_t source;
  int64_t tag;
  uint64_t bytes;
  uint8_t dtype, dims, tensor;
  int32_t block;
};
static_assert(sizeof(Head) == 48);
enum Kind : uint32_t { filler, message };
constexpr int kInline = -1;

char* behind(Head* head) { return reinterpret_cast<char*>(head + 1); }

// Returns where the data go.
char* write(Head* head, const Envelope& e, int block) {
  head->record.kind = Kind::message;
  head->context = e.context, head->source = e.source, head->tag = e.tag, head->bytes = e.bytes;
  head->dtype = e.dtype, head->dims = e.dims, head->tensor = e.tensor, head->block = block;
  std::memcpy(behind(head), e.shape, e.dims * sizeof(int64_t));
  return behind(head) + e.dims * sizeof(int64_t);
}

const char* read(Head* head, Envelope& e) {
  e.context = head->context, e.source = head->source, e.tag = head->tag, e.bytes = head->bytes;
  e.dtype = head->dtype, e.dims = head->dims, e.tensor = head->tensor;
  std::memcpy(e.shape, behind(head), e.dims * sizeof(int64_t));
  return behind(head) + e.dims * sizeof(int64_t);
}

struct Inbox {
  alignas(128) Doorbell doorbell;
  alignas(128) Lane lanes[];
  static size_t bytes(int mates) { return sizeof(Inbox) + size_t(mates) * sizeof(Lane) + 128; }
  static Inbox* in(const Segment& segment) {
    const auto address = reinterpret_cast<uintptr_t>(segment.data());
    return reinterpret_cast<Inbox*>((address + 127) & ~uintptr_t(127));
  }
};

bool can_read(int pid, uint64_t address, uint64_t expected) {
  uint64_t found = 0;
  try {
    PeerMemory(pid, {{}, address}).read(reinterpret_cast<char*>(&found), 0, sizeof(found));
  } catch (const std::system_error&) {
    return false;
  }
  return found == expected;
}

}  // namespace

Mate::Mate(std::shared_ptr<Segment> ours, Lane* in, std::unique_ptr<Segment> theirs, Lane* out,
           Doorbell* doorbell, int pid)
    : incoming(&in->ring),
      ours_(std::move(ours)),
      theirs_(std::move(theirs)),
      in_(in),
      out_(out),
      outgoing_(&out->ring),
      doorbell_(doorbell),
      pid_(pid) {}

bool Mate::push(const Envelope& e, const char* data) {
  Record* record = outgoing_.reserve(sizeof(Head) + e.dims * sizeof(int64_t) + e.bytes);
  if (!record) return false;
  auto* head = reinterpret_cast<Head*>(record);
  char* payload = write(head, e, kInline);
  if (e.bytes) std::memcpy(payload, data, e.bytes);
  outgoing_.publish(record);
  doorbell_->ring();
  return true;
}

bool Mate::push(const std::shared_ptr<Send>& send) {
  const Envelope& e = send->envelope;
  if (e.bytes <= kInlineBytes) {
    if (!push(e, send->data)) return false;
    send->done = true;
    return true;
  }
  Block* block = free_block();
  if (!block) return false;
  Record* record = outgoing_.reserve(sizeof(Head) + e.dims * sizeof(int64_t));
  if (!record || !offer(send, block)) return false;
  write(reinterpret_cast<Head*>(record), e, int(block - out_->blocks));
  outgoing_.publish(record);
  doorbell_->ring();
  return true;
}

// A peer that cannot read this process's memory gets a slot at once.
bool Mate::offer(const std::shared_ptr<Send>& send, Block* block) {
  block->bytes = send->envelope.bytes;
  block->source = Location::of(send->data);
  const bool readable = block->source.place.serial || reaches_us();
  if (!readable) {
    char* slot = take_slot(block, block->bytes);
    if (!slot) return false;
    std::memcpy(slot, send->data, block->bytes);
    block->source = Location::of(slot);
    send->done = true;
  }
  send->to = this;
  send->block = block;
  offered_[block - out_->blocks] = send;
  block->go(readable ? Stage::offered : Stage::filled);
  return true;
}

Block* Mate::free_block() {
  {
    std::lock_guard lock(slots_mutex_);
    reap();
  }
  for (int tries = 0; tries < Lane::kBlocks; tries++)
    if (is_free(int(++next_block_ % Lane::kBlocks)))
      return &out_->blocks[next_block_ % Lane::kBlocks];
  return nullptr;
}

// Acknowledges for a send whose owner does not look after it.
bool Mate::is_free(int number) {
  Block& block = out_->blocks[number];
  std::shared_ptr<Send>& send = offered_[number];
  if (send && block.now() == Stage::acknowledged) send->advance();
  if (block.now() != Stage::free) return false;
  send.reset();
  return true;
}

void Mate::reap() {
  for (Slot& slot : slots_)
    if (slot.block && slot.block->now() == Stage::returned) {
      slot.block->go(Stage::free);
      slot.block = nullptr;
    }
}

char* Mate::take_slot(Block* block, size_t bytes) {
  std::lock_guard lock(slots_mutex_);
  reap();
  for (Slot& slot : slots_)
    if (!slot.block && slot.bytes >= bytes) {
      slot.block = block;
      return slot.memory;
    }
  if (!make_room(bytes)) return nullptr;
  auto* memory = static_cast<char*>(Slabs::instance().allocate(bytes));
  slots_.push_back({memory, bytes, block});
  return memory;
}

// Whether another slot is affordable; drops those that are free and too small if need be. Those
// that the receiver keeps do not count: it may keep them for ever.
bool Mate::make_room(size_t bytes) {
  auto used = [&] {
    size_t sum = 0;
    for (Slot& slot : slots_)
      if (!slot.block || slot.block->now() != Stage::kept) sum += slot.bytes;
    return sum;
  };
  if (used() + bytes > kMostSlotBytes) drop_free_slots();
  return used() == 0 || used() + bytes <= kMostSlotBytes;
}

void Mate::drop_free_slots() {
  std::erase_if(slots_, [](Slot& slot) {
    if (!slot.block) Slabs::instance().release(slot.memory);
    return !slot.block;
  });
}

void Mate::give_back(Block* block) {
  std::lock_guard lock(slots_mutex_);
  for (Slot& slot : slots_)
    if (slot.block == block) slot.block = nullptr;
}

std::shared_ptr<void> Mate::keep(Block* block) {
  const size_t bytes = block->bytes;
  if (kept_bytes_->fetch_add(bytes) + bytes > kMostKeptBytes) {
    kept_bytes_->fetch_sub(bytes);
    return nullptr;
  }
  block->go(Stage::kept);
  return {block, [ours = ours_, kept = kept_bytes_, bytes](void* block) {
            kept->fetch_sub(bytes);
            static_cast<Block*>(block)->go(Stage::returned);
          }};
}

Mate::~Mate() { drop_free_slots(); }

Mailbox::Mailbox(int mates, int me)
    : inbox_(std::make_shared<Segment>(Segment::create(Inbox::bytes(mates)))),
      doorbell_(&Inbox::in(*inbox_)->doorbell),
      me_(me),
      secret_((uint64_t(std::random_device{}()) << 32) | std::random_device{}()),
      mates_(mates) {
#ifdef PR_SET_PTRACER
  // Where Yama restricts reading to a process's own children: node-mates are siblings.
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
#endif
}

void Mailbox::connect(int number, int pid, int fd, uint64_t nonce, uint64_t secret,
                      uint64_t secret_address, bool direct) {
  auto segment = std::make_unique<Segment>(Segment::open(pid, fd, nonce));
  Inbox* theirs = Inbox::in(*segment);
  Lane* in = &Inbox::in(*inbox_)->lanes[number];
  in->reached = direct && can_read(pid, secret_address, secret);
  mates_[number] = std::make_unique<Mate>(inbox_, in, std::move(segment), &theirs->lanes[me_],
                                          &theirs->doorbell, pid);
}

std::shared_ptr<Send> Mailbox::send(int number, const Envelope& envelope, const char* data) {
  auto send = std::make_shared<Send>();
  send->envelope = envelope;
  send->data = data;
  if (number == me_) {
    deliver(envelope, data, 0);
    send->done = true;
    return send;
  }
  std::lock_guard lock(mutex_);
  Mate& mate = *mates_[number];
  if (!mate.waiting.empty() || !mate.push(send)) {
    mate.waiting.push_back(send);
    queued_++;
    note_pending();
  }
  return send;
}

bool Mailbox::send_now(int number, const Envelope& envelope, const char* data) {
  if (number == me_ || envelope.bytes > Mate::kInlineBytes) return false;
  std::lock_guard lock(mutex_);
  Mate& mate = *mates_[number];
  return mate.waiting.empty() && mate.push(envelope, data);
}

// Only while nothing else is on its way could it be this receive's turn, or this message's.
bool Mailbox::receive_now(int number, Receive& receive) {
  if (number == me_) return false;
  std::lock_guard lock(mutex_);
  if (!posted_.empty() || !arrived_.empty() || !active_.empty() || queued_) return false;
  Mate& mate = *mates_[number];
  Record* record = mate.incoming.front();
  if (!record) return false;
  auto* head = reinterpret_cast<Head*>(record);
  Envelope envelope;
  const char* data = shm::read(head, envelope);
  if (head->block != kInline || !receive.matches(envelope)) return false;
  hand_over(receive, envelope, {&mate, nullptr, data, 0});
  mate.incoming.drop(record);
  return true;
}

void Mailbox::receive(const std::shared_ptr<Receive>& receive) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(arrived_.begin(), arrived_.end(),
                            [&](Arrived& a) { return receive->matches(a.envelope); });
  if (found == arrived_.end()) {
    posted_.push_back(receive);
  } else {
    take_over(receive, found->envelope, *found);
    arrived_.erase(found);
  }
  note_pending();
}

std::shared_ptr<Receive> Mailbox::deliver(const Envelope& envelope, const char* data,
                                          uint64_t number) {
  std::lock_guard lock(mutex_);
  return arrive(envelope, {nullptr, nullptr, data, number});
}

// Gives a message to the first receive that takes it, or keeps it, with a copy of its data.
std::shared_ptr<Receive> Mailbox::arrive(const Envelope& envelope, Origin origin) {
  auto found = std::find_if(posted_.begin(), posted_.end(),
                            [&](auto& receive) { return receive->matches(envelope); });
  if (found != posted_.end()) {
    auto receive = *found;
    posted_.erase(found);
    take_over(receive, envelope, origin);
    return receive;
  }
  std::shared_ptr<void> copy;
  if (origin.data) {
    copy = message_memory(envelope.bytes);
    std::memcpy(copy.get(), origin.data, envelope.bytes);
    origin.data = static_cast<char*>(copy.get());
  }
  arrived_.push_back({origin, envelope, std::move(copy)});
  return nullptr;
}

void Mailbox::take_over(const std::shared_ptr<Receive>& receive, const Envelope& envelope,
                        const Origin& origin) {
  hand_over(*receive, envelope, origin);
  if (origin.block) active_.push_back(receive);
}

void Mailbox::hand_over(Receive& receive, const Envelope& envelope, const Origin& origin) {
  receive.from = origin.from;
  receive.block = origin.block;
  receive.elsewhere = origin.elsewhere;
  receive.accept(envelope);
  if (origin.block) return;
  receive.find_memory();
  if (origin.elsewhere) return;
  if (envelope.bytes) std::memcpy(receive.data, origin.data, envelope.bytes);
  receive.finish();
}

void Mailbox::progress(int number) {
  std::vector<std::shared_ptr<Receive>> active;
  {
    std::lock_guard lock(mutex_);
    for (int m = 0; m < int(mates_.size()); m++)
      if (mates_[m] && (number == kEverybody || number == m)) read(*mates_[m]);
    for (auto& mate : mates_)
      if (queued_ && mate) flush(*mate);
    std::erase_if(active_, [](auto& receive) { return receive->done.load(); });
    if (active_.empty()) return note_pending();
    active = active_;
  }
  for (auto& receive : active) receive->advance();
}

void Mailbox::read(Mate& mate) {
  Envelope envelope;
  while (Record* record = mate.incoming.front()) {
    auto* head = reinterpret_cast<Head*>(record);
    const char* data = shm::read(head, envelope);
    if (head->block == kInline)
      arrive(envelope, {&mate, nullptr, data, 0});
    else
      arrive(envelope, {&mate, mate.block(head->block), nullptr, 0});
    mate.incoming.drop(record);
  }
}

void Mailbox::flush(Mate& mate) {
  while (!mate.waiting.empty() && mate.push(mate.waiting.front())) {
    mate.waiting.pop_front();
    queued_--;
  }
}

void Mailbox::note_pending() {
  pending_.store(queued_ || !posted_.empty() || !active_.empty(), std::memory_order_relaxed);
}

void Mailbox::forget(uint32_t context) {
  std::lock_guard lock(mutex_);
  std::erase_if(posted_, [&](auto& receive) { return receive->context == context; });
  std::erase_if(arrived_, [&](auto& a) { return a.envelope.context == context; });
  note_pending();
}

}  // namespace pycomm::shm
