// Memory that several processes map: a file descriptor without a name, so nothing can be left
// behind.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace pycomm::shm {

class Segment {
 public:
  // Creates at least `bytes` of zeroed memory. Throws std::system_error.
  static Segment create(size_t bytes);

  // Maps a segment of another process on this host through its descriptor `fd`, and checks that it
  // is the one that carries `nonce`. Throws std::system_error or std::runtime_error.
  static Segment open(int pid, int fd, uint64_t nonce);

  // A second object over the same mapping, which must outlive it: for threads that play ranks.
  Segment alias() const;

  Segment(Segment&&) noexcept;
  Segment& operator=(Segment&&) = delete;
  ~Segment();

  char* data() const { return base_ + kHeaderBytes; }
  size_t bytes() const { return mapped_ - kHeaderBytes; }
  int fd() const { return fd_; }
  uint64_t nonce() const;

  // The descriptor may be closed once every peer has the segment mapped.
  void close_descriptor();

  // Backs [offset, offset + bytes) with memory at once instead of by one fault a page.
  void populate(size_t offset, size_t bytes);

  // Gives the memory of the whole segment back to the system; it reads as zeros afterwards.
  // Does nothing in a forked child.
  void discard();

 private:
  static constexpr size_t kHeaderBytes = 4096;
  Segment(char* base, size_t mapped, int fd) : base_(base), mapped_(mapped), fd_(fd) {}
  char* base_;
  size_t mapped_;
  int fd_;
  int owner_ = getpid();
  bool alias_ = false;
};

}  // namespace pycomm::shm
