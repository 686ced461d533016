#include "shm/mailbox.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace pycomm::shm {
namespace {

struct Inbox {
  alignas(128) Doorbell doorbell;
  alignas(128) Lane lanes[];
  static size_t bytes(int mates) { return sizeof(Inbox) + size_t(mates) * sizeof(Lane) + 128; }
  static Inbox* in(const Segment& segment) {
    const auto address = reinterpret_cast<uintptr_t>(segment.data());
    return reinterpret_cast<Inbox*>((address + 127) & ~uintptr_t(127));
  }
};

std::atomic<bool> forked = false;

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

Mailbox::Mailbox(int mates, int me, bool direct, bool crowded)
    : inbox_(std::make_shared<Segment>(Segment::create(Inbox::bytes(mates)))),
      doorbell_(&Inbox::in(*inbox_)->doorbell),
      me_(me),
      direct_(direct),
      crowded_(crowded),
      secret_((uint64_t(std::random_device{}()) << 32) | std::random_device{}()),
      mates_(mates) {
#ifdef PR_SET_PTRACER
  // Where Yama restricts reading to a process's own children: node-mates are siblings.
  if (direct && mates > 1) prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
#endif
  static const int once = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  static_cast<void>(once);
}

void Mailbox::connect(int number, std::unique_ptr<Segment> inbox, const Process& process) {
  Inbox* theirs = Inbox::in(*inbox);
  Lane* in = &Inbox::in(*inbox_)->lanes[number];
  in->reached = direct_ && can_read(process.pid, process.secret_address, process.secret);
  mates_[number] = std::make_unique<Mate>(inbox_, in, std::move(inbox), &theirs->lanes[me_],
                                          &theirs->doorbell, process.pid);
}

std::shared_ptr<Send> Mailbox::send(int number, const Envelope& envelope, const char* data) {
  auto send = std::make_shared<Send>();
  send->envelope = envelope;
  send->data = data;
  send->helps = !crowded_;
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
  Envelope envelope;
  Mate::Front front;
  if (!mate.front(envelope, front) || front.block || !receive.matches(envelope)) return false;
  hand_over(receive, envelope, {&mate, nullptr, front.data, 0});
  mate.drop_front();
  mate.doorbell().ring();  // there is room again
  return true;
}

void Mailbox::receive(const std::shared_ptr<Receive>& receive) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(arrived_.begin(), arrived_.end(),
                            [&](Arrived& a) { return receive->matches(a.envelope); });
  if (found == arrived_.end()) {
    posted_.push_back(receive);
  } else {
    count_untaken(*found, found->envelope, -1);
    take_over(receive, found->envelope, *found);
    arrived_.erase(found);
  }
  note_pending();
}

void Mailbox::withdraw(const Receive& receive) {
  std::lock_guard lock(mutex_);
  std::erase_if(posted_, [&](auto& posted) { return posted.get() == &receive; });
}

std::shared_ptr<Receive> Mailbox::deliver(const Envelope& envelope, const char* data,
                                          uint64_t number) {
  std::lock_guard lock(mutex_);
  return arrive(envelope, {nullptr, nullptr, data, number});
}

// Gives a message to the first receive that takes it, or keeps it.
std::shared_ptr<Receive> Mailbox::arrive(const Envelope& envelope, Origin origin) {
  if (closed_.contains(envelope.context)) {
    refuse(origin);
    return nullptr;
  }
  auto found = std::find_if(posted_.begin(), posted_.end(),
                            [&](auto& receive) { return receive->matches(envelope); });
  if (found == posted_.end()) {
    keep(envelope, origin);
    return nullptr;
  }
  auto receive = *found;
  posted_.erase(found);
  take_over(receive, envelope, origin);
  return receive;
}

void Mailbox::refuse(const Origin& origin) {
  if (!origin.block) return;
  origin.block->refuse();
  origin.from->doorbell().ring();
}

// A small message is copied. A large one stays where it is, unless too many do: a sender that has
// no block or slot left could not even tell of the message that is waited for.
void Mailbox::keep(const Envelope& envelope, Origin origin) {
  std::shared_ptr<void> memory;
  if (origin.data) {
    memory = message_memory(envelope.bytes);
    std::memcpy(memory.get(), origin.data, envelope.bytes);
  } else if (origin.block && too_many_untaken(origin, envelope)) {
    memory = take_alone(envelope, origin);
  }
  if (memory) origin.data = static_cast<char*>(memory.get()), origin.block = nullptr;
  count_untaken(origin, envelope, 1);
  arrived_.push_back({origin, envelope, std::move(memory)});
}

bool Mailbox::too_many_untaken(const Origin& origin, const Envelope& envelope) {
  const Mate& mate = *origin.from;
  const bool in_slot = origin.block->now() == Stage::filled;
  return mate.untaken >= kMostUntaken ||
         (in_slot && mate.untaken && mate.untaken_bytes + envelope.bytes > kMostUntakenBytes);
}

// Null if it has to stay: then it fails, or is taken, when somebody wants it.
std::shared_ptr<void> Mailbox::take_alone(const Envelope& envelope, const Origin& origin) {
  Receive receive;
  hand_over(receive, envelope, origin);
  try {
    return receive.take_alone() ? receive.memory : nullptr;
  } catch (const std::exception&) {
    return nullptr;
  }
}

void Mailbox::count_untaken(const Origin& origin, const Envelope& envelope, int more) {
  if (!origin.block) return;
  origin.from->untaken += more;
  origin.from->untaken_bytes += size_t(more) * envelope.bytes;
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
  if (forked) return;  // the messages are the parent's
  std::vector<std::shared_ptr<Receive>> active;
  {
    std::lock_guard lock(mutex_);
    for (int m = 0; m < int(mates_.size()); m++)
      if (mates_[m] && (number == kEverybody || number == m)) read(*mates_[m]);
    for (auto& mate : mates_)
      if (queued_ && mate) flush(*mate);
    active = active_;
    if (active.empty()) return note_pending();
  }
  bool any_done = false;
  for (auto& receive : active) any_done |= receive->advance();
  if (any_done) drop_done();
}

// What is done is its owner's alone, and with it the slot that it may keep.
void Mailbox::drop_done() {
  std::lock_guard lock(mutex_);
  std::erase_if(active_, [](auto& receive) { return receive->done.load(); });
  note_pending();
}

void Mailbox::read(Mate& mate) {
  Envelope envelope;
  Mate::Front front;
  if (!mate.front(envelope, front)) return;
  do {
    arrive(envelope, {&mate, front.block, front.data, 0});
    mate.drop_front();
  } while (mate.front(envelope, front));
  mate.doorbell().ring();  // there is room again
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
  closed_.insert(context);
  std::erase_if(posted_, [&](auto& receive) { return receive->context == context; });
  std::erase_if(arrived_, [&](Arrived& a) {
    if (a.envelope.context != context) return false;
    count_untaken(a, a.envelope, -1);
    refuse(a);
    return true;
  });
  note_pending();
}

}  // namespace pycomm::shm
