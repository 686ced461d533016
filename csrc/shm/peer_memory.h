// Memory of another process on this host: mapped where it lies in a slab, else reached through the
// kernel ("cross-memory attach": Goglin and Moreaud, KNEM, JPDC 2013).
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

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
      transfer(process_vm_readv, to, offset, bytes);
  }
  void write(const char* from, size_t offset, size_t bytes) const {
    if (mapped_)
      std::memcpy(mapped_ + offset, from, bytes);
    else
      transfer(process_vm_writev, const_cast<char*>(from), offset, bytes);
  }

  char* mapped() const { return mapped_; }

 private:
  template <class Call>
  void transfer(Call call, char* here, size_t offset, size_t bytes) const {
    while (bytes) {
      iovec mine{here, bytes}, theirs{reinterpret_cast<void*>(address_ + offset), bytes};
      const ssize_t moved = call(pid_, &mine, 1, &theirs, 1, 0);
      if (moved < 0) throw std::system_error(errno, std::generic_category(), "process_vm");
      here += moved, offset += size_t(moved), bytes -= size_t(moved);
    }
  }

  int pid_;
  uint64_t address_;
  char* mapped_ = nullptr;
  std::shared_ptr<Segment> slab_;
};

}  // namespace pycomm::shm
