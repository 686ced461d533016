// Memory of another process on this host: mapped where it lies in a slab, else reached through the
// kernel ("cross-memory attach": Goglin and Moreaud, KNEM, JPDC 2013).
#pragma once

#include <cstring>
#include <memory>
#include <system_error>

#include "shm/remote.h"
#include "shm/segment.h"
#include "shm/slab.h"

namespace pycomm::shm {

// Where an array lies, in terms that a node-mate understands.
struct Location {
  Place place;
  uint64_t address = 0;

  static Location of(const void* data) {
    return {Slabs::instance().find(data), reinterpret_cast<uint64_t>(data)};
  }
};

class PeerMemory {
 public:
  // May throw what Segment::open throws.
  PeerMemory(int pid, const Location& where) : pid_(pid), address_(where.address) {
    if (!where.place.serial) return;
    slab_ = map_slab(pid, where.place);
    mapped_ = slab_->data() + where.place.offset;
  }

  // Throw std::system_error, with EPERM where the kernel does not allow it.
  void read(char* to, size_t offset, size_t bytes) const {
    if (mapped_)
      std::memcpy(to, mapped_ + offset, bytes);
    else
      check(read_process(pid_, to, address_ + offset, bytes));
  }
  void write(const char* from, size_t offset, size_t bytes) const {
    if (mapped_)
      std::memcpy(mapped_ + offset, from, bytes);
    else
      check(write_process(pid_, address_ + offset, from, bytes));
  }

  char* mapped() const { return mapped_; }

 private:
  static void check(int error) {
    if (error) throw std::system_error(error, std::generic_category(), "process_vm");
  }

  int pid_;
  uint64_t address_;
  char* mapped_ = nullptr;
  std::shared_ptr<Segment> slab_;
};

}  // namespace pycomm::shm
