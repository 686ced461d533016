// Symmetric buffers: arrays inside slabs, the shared memory that a process owns and its node-mates
// map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "shm/segment.h"

namespace pycomm::shm {

// Where a symmetric buffer lies, in terms that a node-mate understands. serial 0: not in a slab.
struct Place {
  uint32_t serial = 0;
  int32_t fd = -1;
  uint64_t nonce = 0;
  uint64_t offset = 0;
};

// The slabs of this process. A slab is kept, with its descriptor, until the process ends, so that
// the maps of peers stay right; the memory of an empty one goes back to the system.
class Slabs {
 public:
  static Slabs& instance();

  void* allocate(size_t bytes);  // aligned to a cache line; to a page from 4 KiB on
  void release(void* memory);
  Place find(const void* memory) const;
  size_t bytes_in_use() const;
  std::shared_ptr<Segment> segment(uint32_t serial) const;

 private:
  struct Slab {
    Segment segment;
    uint32_t serial;
    std::map<size_t, size_t> free;   // offset → bytes
    std::map<size_t, size_t> taken;  // offset → bytes
  };
  void* take(Slab&, size_t bytes, size_t align);
  Slab* owner(const void* memory) const;

  mutable std::mutex mutex_;
  std::map<uintptr_t, std::unique_ptr<Slab>> slabs_;  // by address
};

// The slab at `place` of process `pid`, mapped on first sight and shared by all communicators. This
// process has its own slabs mapped already.
std::shared_ptr<Segment> map_slab(int pid, const Place& place);

}  // namespace pycomm::shm
