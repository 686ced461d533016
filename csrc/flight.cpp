#include "flight.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace pycomm::flight {

struct Memory {
  Header header;
  Record records[Recorder::kRecords];
  char texts[Recorder::kTexts][Recorder::kTextBytes];
};

namespace {

constexpr uint64_t kMagic = 0x7079636f6d6d0001;  // "pycomm", layout 1

// Returns null where there is no memory to map.
Memory* map(int fd, int protection, int flags, void* at = nullptr) {
  void* base = mmap(at, sizeof(Memory), protection, flags, fd, 0);
  return base == MAP_FAILED ? nullptr : static_cast<Memory*>(base);
}

uint64_t number(const Record& record, std::memory_order order) {
  return std::atomic_ref(const_cast<uint64_t&>(record.number)).load(order);
}

void publish(Record& record, uint64_t number) {
  std::atomic_ref(record.number).store(number, std::memory_order_release);
}

Snapshot copy(const Memory& memory) {
  Snapshot all{memory.header, {}, {}};
  for (const Record& record : memory.records) {
    const uint64_t before = number(record, std::memory_order_acquire);
    const Record copied = record;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (before && number(record, std::memory_order_relaxed) == before)
      all.records.push_back(copied);
  }
  std::sort(all.records.begin(), all.records.end(),
            [](auto& a, auto& b) { return a.number < b.number; });
  for (auto& text : memory.texts) all.texts.emplace_back(text, strnlen(text, Recorder::kTextBytes));
  return all;
}

}  // namespace

Recorder& Recorder::instance() {
  static Recorder* recorder = new Recorder;
  return *recorder;
}

Recorder::Recorder() : fd_(memfd_create(kName, MFD_CLOEXEC)) {
  const bool shared = fd_ >= 0 && ftruncate(fd_, sizeof(Memory)) == 0;
  memory_ = map(shared ? fd_ : -1, PROT_READ | PROT_WRITE,
                shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  if (!memory_) throw std::bad_alloc();
  const auto unix_time = std::chrono::system_clock::now().time_since_epoch();
  memory_->header.unix_ns = std::chrono::nanoseconds(unix_time).count() - int64_t(now_ns());
  memory_->header.pid = getpid();
  memory_->header.magic = kMagic;
  places_.emplace("", 0);
  pthread_atfork(nullptr, nullptr, [] { instance().forked(); });
}

// A forked child gets memory of its own at the same place, and nothing that others could read.
void Recorder::forked() {
  map(-1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, memory_);
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void Recorder::describe(int rank, int size, std::string_view job) {
  Header& header = memory_->header;
  header.rank = rank;
  header.size = size;
  header.job[job.copy(header.job, sizeof(header.job) - 1)] = 0;
}

Text Recorder::text(std::string_view text) {
  if (text.size() >= kTextBytes) text.remove_prefix(text.size() - kTextBytes + 1);
  const auto found = places_.find(std::string(text));
  if (found != places_.end()) return found->second;
  if (places_.size() == kTexts) return 0;
  const Text place = Text(places_.size());
  text.copy(memory_->texts[place], text.size());
  places_.emplace(text, place);
  return place;
}

uint64_t Recorder::begin(const Group& group, uint64_t sequence, const Call& call, uint64_t now) {
  const uint64_t number =
      1 + std::atomic_ref(memory_->header.begun).fetch_add(1, std::memory_order_relaxed);
  Record& slot = record(number);
  std::atomic_ref(slot.number).store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  slot.sequence = sequence;
  slot.start_ns = now;
  slot.end_ns = 0;
  slot.call = call;
  slot.group = group;
  slot.state = State::running;
  publish(slot, number);
  return number;
}

void Recorder::came_from(uint64_t number, Text site) {
  Record& slot = record(number);
  if (number && slot.number == number) slot.call.site = site;
}

void Recorder::end(uint64_t number, State state, uint64_t now, uint64_t received, Text dtype) {
  Record& slot = record(number);
  if (slot.number != number || slot.state != State::running) return;
  if (received) slot.call.bytes = received, slot.call.dtype = dtype;
  slot.end_ns = now;
  slot.state = state;
}

Record& Recorder::record(uint64_t number) { return memory_->records[(number - 1) % kRecords]; }

Snapshot Recorder::read() const { return copy(*memory_); }

Snapshot Recorder::read(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  const bool fits = fd >= 0 && fstat(fd, &status) == 0 && size_t(status.st_size) == sizeof(Memory);
  Memory* memory = fits ? map(fd, PROT_READ, MAP_SHARED) : nullptr;
  if (fd >= 0) close(fd);
  if (!memory) throw std::runtime_error(path + " is not a flight recorder of this version");
  Snapshot all = copy(*memory);
  munmap(memory, sizeof(Memory));
  if (all.header.magic != kMagic) throw std::runtime_error(path + " is of another version");
  return all;
}

}  // namespace pycomm::flight
