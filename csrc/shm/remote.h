// Reading and writing the ordinary memory of another process, where the system allows it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycomm::shm {

// Copy `bytes` at `from`, or to `to`, in process `pid`. Return 0, or errno with a part copied.
int read_process(int pid, char* to, uint64_t from, size_t bytes);
int write_process(int pid, uint64_t to, const char* from, size_t bytes);

// Whether memory of this process lies in huge pages, by the page in its middle; false where the
// system cannot say. Reading small ones of another process is slower than copying twice.
bool in_huge_pages(const void* memory, size_t bytes);

}  // namespace pycomm::shm
