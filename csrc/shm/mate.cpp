#include "shm/mate.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "shm/slab.h"

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

}  // namespace

Mate::Mate(std::shared_ptr<Segment> ours, Lane* in, std::unique_ptr<Segment> theirs, Lane* out,
           Doorbell* doorbell, int pid)
    : ours_(std::move(ours)),
      theirs_(std::move(theirs)),
      in_(in),
      out_(out),
      incoming_(&in->ring),
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
  block->cut(send->helps);
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
  if (send && (block.now() == Stage::acknowledged || block.ended_badly())) send->advance();
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
  try {
    auto* memory = static_cast<char*>(Slabs::instance().allocate(bytes));
    slots_.push_back({memory, bytes, block});
    return memory;
  } catch (const std::system_error&) {  // no memory or no descriptor left
    return nullptr;
  }
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
  const size_t bytes = std::max<size_t>(block->bytes, kMostKeptBytes / kMostKept);
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

Mate::~Mate() {
  reap();
  drop_free_slots();
}

bool Mate::front(Envelope& envelope, Front& front) {
  auto* head = reinterpret_cast<Head*>(incoming_.front());
  if (!head) return false;
  const char* data = read(head, envelope);
  const bool small = head->block == kInline;
  front = {small ? data : nullptr, small ? nullptr : &in_->blocks[head->block]};
  return true;
}

void Mate::drop_front() { incoming_.drop(incoming_.front()); }

}  // namespace pycomm::shm
