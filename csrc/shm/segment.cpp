#include "shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace pycomm::shm {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

char* map(int fd, size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) fail("mapping " + std::to_string(bytes) + " bytes of shared memory");
  madvise(base, bytes, MADV_HUGEPAGE);
  return static_cast<char*>(base);
}

uint64_t random_nonce() {
  uint64_t nonce = 0;
  while (nonce == 0)
    if (getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce)) fail("getrandom");
  return nonce;
}

// memfd_create where the kernel has it, else a name in /dev/shm that is removed at once.
int anonymous_file() {
  int fd = memfd_create("pycomm", MFD_CLOEXEC);
  if (fd >= 0) return fd;
  std::string name = "/pycomm-" + std::to_string(getpid()) + "-" + std::to_string(random_nonce());
  fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) fail("creating shared memory");
  shm_unlink(name.c_str());
  return fd;
}

}  // namespace

Segment Segment::create(size_t bytes) {
  const size_t page = 4096, mapped = kHeaderBytes + (bytes + page - 1) / page * page;
  Segment segment(nullptr, mapped, anonymous_file());
  if (ftruncate(segment.fd_, off_t(mapped)) != 0)
    fail("sizing shared memory to " + std::to_string(mapped) + " bytes");
  segment.base_ = map(segment.fd_, mapped);
  *reinterpret_cast<uint64_t*>(segment.base_) = random_nonce();
  return segment;
}

Segment Segment::open(int pid, int fd, uint64_t nonce) {
  std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  Segment segment(nullptr, 0, ::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (segment.fd_ < 0) fail("opening " + path);
  struct stat status;
  if (fstat(segment.fd_, &status) != 0) fail("looking at " + path);
  if (size_t(status.st_size) <= kHeaderBytes)
    throw std::runtime_error(path + " is not a pycomm segment");
  segment.mapped_ = size_t(status.st_size);
  segment.base_ = map(segment.fd_, segment.mapped_);
  if (segment.nonce() != nonce) throw std::runtime_error(path + " is a segment of another job");
  segment.close_descriptor();
  return segment;
}

Segment::Segment(Segment&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      mapped_(other.mapped_),
      fd_(std::exchange(other.fd_, -1)),
      owner_(other.owner_),
      alias_(other.alias_) {}

Segment Segment::alias() const {
  Segment segment(base_, mapped_, -1);
  segment.alias_ = true;
  return segment;
}

Segment::~Segment() {
  if (base_ && !alias_) munmap(base_, mapped_);
  close_descriptor();
}

uint64_t Segment::nonce() const { return *reinterpret_cast<const uint64_t*>(base_); }

void Segment::close_descriptor() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

void Segment::populate(size_t offset, size_t bytes) {
  const size_t page = 4096, from = (kHeaderBytes + offset) / page * page;
  madvise(base_ + from, kHeaderBytes + offset + bytes - from,
          MADV_POPULATE_WRITE);  // older kernels: by faults
}

void Segment::discard() {
  if (getpid() != owner_) return;  // a forked child drops its arrays, not its parent's memory
  fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(kHeaderBytes), off_t(bytes()));
}

}  // namespace pycomm::shm
