#include "shm/slab.h"

#include <algorithm>
#include <utility>

namespace pycomm::shm {
namespace {

constexpr size_t kSlabBytes = size_t(64) << 20, kLine = 128, kPage = 4096;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

}  // namespace

Slabs& Slabs::instance() {
  static Slabs* slabs = new Slabs;  // never destroyed: arrays may outlive everything else
  return *slabs;
}

void* Slabs::allocate(size_t bytes) {
  std::lock_guard lock(mutex_);
  const size_t align = bytes >= kPage ? kPage : kLine,
               rounded = round_up(std::max<size_t>(bytes, 1), align);
  for (auto& [address, slab] : slabs_)
    if (void* memory = take(*slab, rounded, align)) return memory;
  Segment segment = Segment::create(std::max(kSlabBytes, round_up(rounded, kPage)));
  const uintptr_t address = reinterpret_cast<uintptr_t>(segment.data());
  const size_t size = segment.bytes();
  auto slab = std::make_unique<Slab>(
      Slab{std::move(segment), uint32_t(slabs_.size() + 1), {{0, size}}, {}});
  return take(*slabs_.emplace(address, std::move(slab)).first->second, rounded, align);
}

// First fit.
void* Slabs::take(Slab& slab, size_t bytes, size_t align) {
  for (auto [offset, size] : slab.free) {
    const size_t start = round_up(offset, align), end = offset + size;
    if (start + bytes > end) continue;
    slab.free.erase(offset);
    if (start > offset) slab.free[offset] = start - offset;
    if (start + bytes < end) slab.free[start + bytes] = end - start - bytes;
    slab.taken[start] = bytes;
    slab.segment.populate(start, bytes);
    return slab.segment.data() + start;
  }
  return nullptr;
}

void Slabs::release(void* memory) {
  std::lock_guard lock(mutex_);
  Slab* slab = owner(memory);
  size_t offset = size_t(static_cast<char*>(memory) - slab->segment.data());
  size_t bytes = slab->taken.extract(offset).mapped();
  auto next = slab->free.lower_bound(offset);
  if (next != slab->free.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = slab->free.erase(next);
  }
  if (next != slab->free.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
    }
  }
  slab->free[offset] = bytes;
  if (slab->taken.empty()) slab->segment.discard();
}

Place Slabs::find(const void* memory) const {
  std::lock_guard lock(mutex_);
  Slab* slab = owner(memory);
  if (!slab) return {};
  const size_t offset = size_t(static_cast<const char*>(memory) - slab->segment.data());
  return {slab->serial, slab->segment.fd(), slab->segment.nonce(), offset};
}

size_t Slabs::bytes_in_use() const {
  std::lock_guard lock(mutex_);
  size_t sum = 0;
  for (auto& [address, slab] : slabs_)
    for (auto [offset, bytes] : slab->taken) sum += bytes;
  return sum;
}

std::shared_ptr<Segment> Slabs::segment(uint32_t serial) const {
  std::lock_guard lock(mutex_);
  for (auto& [address, slab] : slabs_)
    if (slab->serial == serial) return {std::shared_ptr<void>(), &slab->segment};  // never freed
  return nullptr;
}

Slabs::Slab* Slabs::owner(const void* memory) const {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  auto after = slabs_.upper_bound(address);
  if (after == slabs_.begin()) return nullptr;
  Slab* slab = std::prev(after)->second.get();
  return address < std::prev(after)->first + slab->segment.bytes() ? slab : nullptr;
}

std::shared_ptr<Segment> map_slab(int pid, const Place& place) {
  if (pid == getpid()) return Slabs::instance().segment(place.serial);
  static std::mutex mutex;
  static auto* mapped = new std::map<std::pair<int, uint64_t>, std::weak_ptr<Segment>>;
  std::lock_guard lock(mutex);
  std::weak_ptr<Segment>& entry = (*mapped)[{pid, place.nonce}];
  std::shared_ptr<Segment> segment = entry.lock();
  if (!segment)
    entry = segment = std::make_shared<Segment>(Segment::open(pid, place.fd, place.nonce));
  return segment;
}

}  // namespace pycomm::shm
