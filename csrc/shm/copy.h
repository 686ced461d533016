// How collectives copy: into the caches, or past them where the data would not stay there anyhow.
#pragma once

#include <cstddef>

namespace pycomm::shm {

// The size of the last cache, which ranks share; tests write to it.
size_t& cache_bytes();

// Does nothing for no bytes, or when both are the same.
void copy(char* to, const char* from, size_t bytes);

// Copies to where nobody looks before the operation is over.
class CopyOut {
 public:
  // `touched`: the bytes that all ranks together read and write.
  explicit CopyOut(size_t touched) : streams_(touched >= cache_bytes()) {}
  explicit CopyOut(bool streams) : streams_(streams) {}
  void operator()(char* to, const char* from, size_t bytes) const;

 private:
  bool streams_;
};

}  // namespace pycomm::shm
