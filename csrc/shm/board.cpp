#include "shm/board.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "shm/mailbox.h"
#include "shm/remote.h"

namespace pycomm::shm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBackgroundSpins = 200;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

size_t Board::bytes(int size) {
  const size_t node = 2 * sizeof(Line) + sizeof(Phase);
  return size_t(size) *
             (2 * node + 2 * sizeof(Header) + sizeof(Presence) + sizeof(Note) + kRingBytes) +
         4096;
}

Board::Board(Segment segment, int rank, int size, bool crowded, double timeout, Groups groups)
    : segment_(std::move(segment)),
      rank_(rank),
      size_(size),
      crowded_(crowded),
      spins_(crowded ? 20 : 4000),
      groups_(std::move(groups)),
      whole_bytes_(crowded ? kWholeBytes : kWholeBytes / 64),
      timeout_(timeout),
      probe_(segment_.nonce() + uint64_t(rank)),
      peer_slabs_(size) {
  char* at = segment_.data();
  auto place = [&](auto*& array, size_t count) {
    static_assert(sizeof(*array) % 128 == 0, "what two ranks write shares no cache line");
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
    at += count * sizeof(*array);
  };
  const size_t nodes = size_t(size) + groups_.size();
  place(lines_, 2 * nodes);
  place(headers_, 2 * size);
  place(phases_, nodes);
  place(presence_, size);
  place(notes_, size);
  rings_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at) + 4095) & ~uintptr_t(4095));
  presence_[rank].pid = getpid();
  presence_[rank].probe_at = reinterpret_cast<uintptr_t>(&probe_);
  presence_[rank].probe = probe_;
  find_nodes();
}

void Board::find_nodes() {
  for (int r = 0; r < size_ && groups_.empty(); r++)
    if (r != rank_) read_.push_back(r);
  for (size_t g = 0; g < groups_.size(); g++) {
    read_.push_back(size_ + int(g));
    if (groups_[g].front() != rank_) continue;
    led_ = read_.back();
    members_of_led_.assign(groups_[g].begin() + 1, groups_[g].end());
  }
}

Board::~Board() { depart(); }

void Board::depart() {
  if (presence_[rank_].pid != getpid()) return;  // a forked child is not the rank
  presence_[rank_].departed.store(1, std::memory_order_release);
}

template <Board::CounterOf of>
inline void Board::await_all(const std::vector<int>& nodes, uint64_t target, Idle& idle) {
  const int spins = idle.background ? std::min(spins_, kBackgroundSpins) : spins_;
  for (int node : nodes) {
    const Counter& counter = (this->*of)(node);
    int looks = 0;
    while (looks < spins && !counter.reached(target)) pause(), looks++;
    if (looks == spins) await_long(of, node, target, idle);
  }
}

Path Board::open(const Call& call, const void* data, size_t bytes, Idle& idle) {
  if (failure_) std::rethrow_exception(failure_);
  sequence_++;
  Line& mine = line(rank_);
  std::ranges::copy(call.header, headers_[2 * rank_ + sequence_ % 2].words);
  const bool reads = call.remote && can_read_peers();
  offer(call, data, bytes, reads);
  Common all = Common::of(call.fingerprint, call.detail, mine.offer, reads);
  mine.common = all;
  mine.epoch.publish(sequence_);
  await_all<&Board::opened>(members_of_led_, sequence_, idle);
  if (led_) {
    for (int node : members_of_led_) all.add(line(node).common);
    line(*led_).common = all;
    line(*led_).epoch.publish(sequence_);
  }
  await_all<&Board::opened>(read_, sequence_, idle);
  for (int node : read_) all.add(line(node).common);
  if (!all.alike) fail(Mismatch{});
  return all.path();
}

template <class Failed>
void Board::fail(Failed failed) {
  failure_ = std::make_exception_ptr(failed);
  throw failed;
}

// Small data are copied before the line is published; large data are only pointed at.
void Board::offer(const Call& call, const void* data, size_t bytes, bool reads) {
  Line& mine = line(rank_);
  mine.offer = Offer::nothing;
  mine.staged_at = uint32_t(staged_);
  const bool closes = bytes > whole_bytes_;  // nobody else stages it whole: a barrier follows
  if (!data && call.target && closes && bytes >= kTargetBytes) {
    mine.place = Slabs::instance().find(call.target);
    if (mine.place.serial) mine.offer = Offer::target;
  }
  if (!data || !bytes) return;
  if (bytes <= Line::kPayloadBytes) {
    mine.offer = Offer::line;
    std::memcpy(mine.payload, data, bytes);
    return;
  }
  const size_t whole = call.read_by_all ? std::min(whole_bytes_, kSmallBytes) : whole_bytes_;
  mine.place = bytes > kInPlaceBytes ? Slabs::instance().find(data) : Place{};
  mine.offer = mine.place.serial ? Offer::slab : bytes <= whole ? Offer::staged : Offer::ordinary;
  if (mine.offer == Offer::staged) stage(data, bytes);
  if (mine.offer == Offer::ordinary && reads && worth_reading(data, bytes)) {
    mine.offer = Offer::remote;
    mine.place.offset = reinterpret_cast<uintptr_t>(data);
  }
}

void Board::stage(const void* data, size_t bytes) {
  Line& mine = line(rank_);
  if (staged_ + bytes > kRingBytes) mine.staged_at = 0;
  std::memcpy(ring(rank_) + mine.staged_at, data, bytes);
  staged_ = mine.staged_at + in_lines(bytes);
}

bool Board::worth_reading(const void* data, size_t bytes) const {
  return bytes >= kRemoteBytes && (peer_reads == PeerReads::always || in_huge_pages(data, bytes));
}

// Tried once, when it is first of use: by then all ranks are there.
bool Board::can_read_peers() {
  if (peer_reads == PeerReads::never) return false;
  if (!reads_) {
    reads_ = true;
    for (int r = 0; r < size_ && *reads_; r++) {
      const Presence& there = presence_[r];
      uint64_t got = 0;
      const int error =
          read_process(there.pid, reinterpret_cast<char*>(&got), there.probe_at, sizeof(got));
      reads_ = !error && got == there.probe;
    }
  }
  return *reads_;
}

char* Board::source(int r) {
  switch (line(r).offer) {
    case Offer::line:
      return line(r).payload;
    case Offer::slab:
      return slab_memory(r);
    default:
      return ring(r) + line(r).staged_at;
  }
}

const std::vector<char*>& Board::sources(size_t offset_bytes) {
  sources_.resize(size_);
  for (int r = 0; r < size_; r++) sources_[r] = source(r) + offset_bytes;
  return sources_;
}

void Board::take(int r, size_t offset, char* to, size_t bytes, const CopyOut& copy_out) {
  if (!bytes) return;
  if (line(r).offer != Offer::remote) return copy_out(to, source(r) + offset, bytes);
  const int error = read_process(presence_[r].pid, to, line(r).place.offset + offset, bytes);
  peer_reads_done++;
  if (!error) return;
  depart();
  if (error == ESRCH) fail(Departed{r});
  fail(Unreadable{r, error});
}

char* Board::slab_memory(int r) {
  const Place& place = line(r).place;
  auto& known = peer_slabs_[r];
  auto found = std::find_if(known.begin(), known.end(),
                            [&](auto& entry) { return entry.first == place.nonce; });
  if (found == known.end())
    found = known.emplace(known.end(), place.nonce, map_slab(presence_[r].pid, place));
  return found->second->data() + place.offset;
}

void Board::cut(size_t count, size_t bytes) {
  stride_ = in_lines(bytes);
  slots_ = kRingBytes / stride_;
  staged_ = ((first_piece(rank_) + count - 1) % slots_ + 1) * stride_;
  staging.begin(count);
}

void Board::barrier(Idle& idle) {
  phases_[rank_].passed.publish(++phase_);
  await_all<&Board::passed>(members_of_led_, phase_, idle);
  if (led_) phases_[*led_].passed.publish(phase_);
  await_all<&Board::passed>(read_, phase_, idle);
}

// Yields for a while, so that a peer on this core can run; then sleeps, and looks up now and then.
void Board::await_long(CounterOf of, int node, uint64_t target, Idle& idle) {
  Counter& counter = (this->*of)(node);
  const auto start = Clock::now();
  const int yields = idle.background ? 0 : 50;
  for (int i = 0; i < yields && !counter.reached(target); i++) sched_yield();
  if (!counter.reached(target)) {
    idle.park();
    if (waits_) waits_->begin();
    bool warned = false;
    try {
      while (!counter.reached(target)) {
        counter.sleep(target, mailbox_ && mailbox_->is_pending() ? 200 : 5000);
        if (mailbox_) mailbox_->progress();
        const double waited_s = seconds_since(start);
        const int peer = missing(of, node, target);
        check(counter, target, peer, waited_s, idle);
        if (!warned && waited_s > timeout_ / 2) idle.late(rank_, peer, waited_s), warned = true;
      }
    } catch (...) {
      if (waits_) waits_->end();
      throw;
    }
    if (waits_) waits_->end();
  }
  waited_ns_ += uint64_t(seconds_since(start) * 1e9);
}

// Whom a wait for a node is for: of a group, the first who has not come, or else its leader.
int Board::missing(CounterOf of, int node, uint64_t target) {
  if (node < size_) return node;
  const auto& members = groups_[size_t(node - size_)];
  const auto late =
      std::ranges::find_if(members, [&](int r) { return !(this->*of)(r).reached(target); });
  return late == members.end() ? members.front() : *late;
}

bool Board::member_died() const {
  return watchdog_ && watchdog_->deaths() &&
         std::any_of(members_.begin(), members_.end(),
                     [this](int p) { return watchdog_->is_dead(p); });
}

// Whether there is any use in waiting on. A deadlock comes first: who was told of it may have left.
void Board::check(const Counter& counter, uint64_t target, int peer, double waited_s, Idle& idle) {
  try {
    if (waits_) waits_->look(processes_[peer]);
    idle.poll();
  } catch (const Deadlock& deadlock) {
    fail(deadlock);
  } catch (...) {
    failure_ = std::make_exception_ptr(Interrupted{});
    throw;
  }
  if (has_departed(peer) && !counter.reached(target)) fail(Departed{peer});
  if (member_died() && !counter.reached(target)) fail(Died{});
  if (waited_s > timeout_ && !counter.reached(target)) fail(Stalled{peer});
}

std::vector<std::string> Board::exchange_notes(const std::string& mine, Idle& idle) {
  std::strncpy(notes_[rank_].text, mine.c_str(), sizeof(Note::text) - 1);
  notes_[rank_].epoch.publish(sequence_);
  idle.park();
  const auto start = Clock::now();
  std::vector<std::string> all(size_);
  for (int r = 0; r < size_; r++) {
    Counter& epoch = notes_[r].epoch;
    while (!epoch.reached(sequence_) && seconds_since(start) < 2.0 && !has_departed(r))
      epoch.sleep(sequence_, 5000);
    if (epoch.reached(sequence_)) all[r] = notes_[r].text;
  }
  return all;
}

}  // namespace pycomm::shm
