#include "shm/remote.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <cerrno>

namespace pycomm::shm {
namespace {

// From linux/fs.h of Linux 6.7, which older systems to build on have not.
struct PageRegion {
  uint64_t start, end, categories;
};
struct PageScan {
  uint64_t size, flags, start, end, walk_end, regions, regions_count, most_pages, inverted, wanted,
      any_wanted, returned;
};
constexpr uint64_t kIsHuge = 1 << 6;
constexpr unsigned long kScan = _IOWR('f', 16, PageScan);

// `call`: process_vm_readv or process_vm_writev, which moves less than 2 GiB at a time.
template <class Call>
int transfer(Call call, int pid, char* here, uint64_t there, size_t bytes) {
  while (bytes) {
    iovec mine{here, bytes}, theirs{reinterpret_cast<void*>(there), bytes};
    const ssize_t moved = call(pid, &mine, 1, &theirs, 1, 0);
    if (moved <= 0) return moved ? errno : EFAULT;
    here += moved, there += uint64_t(moved), bytes -= size_t(moved);
  }
  return 0;
}

}  // namespace

int read_process(int pid, char* to, uint64_t from, size_t bytes) {
  return transfer(process_vm_readv, pid, to, from, bytes);
}

int write_process(int pid, uint64_t to, const char* from, size_t bytes) {
  return transfer(process_vm_writev, pid, const_cast<char*>(from), to, bytes);
}

bool in_huge_pages(const void* memory, size_t bytes) {
  static const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  constexpr uint64_t kPage = 4096;
  const uint64_t middle = (reinterpret_cast<uintptr_t>(memory) + bytes / 2) / kPage * kPage;
  PageRegion found{};
  PageScan scan{};
  scan.size = sizeof(scan);
  scan.start = middle;
  scan.end = middle + kPage;
  scan.regions = reinterpret_cast<uintptr_t>(&found);
  scan.regions_count = 1;
  scan.wanted = scan.returned = kIsHuge;
  return ioctl(pagemap, kScan, &scan) == 1;
}

}  // namespace pycomm::shm
