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

}  // namespace

int read_process(int pid, char* to, uint64_t from, size_t bytes) {
  while (bytes) {  // one call reads less than 2 GiB
    iovec here{to, bytes}, there{reinterpret_cast<void*>(from), bytes};
    const ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
    if (got <= 0) return got ? errno : EFAULT;
    to += got, from += uint64_t(got), bytes -= size_t(got);
  }
  return 0;
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
