// The flight recorder: the last operations of this process, in memory that others can read at any
// time through /proc/PID/fd, also while the process hangs or is stopped.
//
// Memory-ordering rules. A record is begun and ended by any one thread. Its number is 0 while it is
// filled, and published last (release); a reader takes a copy between two equal readings of it
// (acquire). Texts are added by the holder of the interpreter lock, and never change.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pycomm::flight {

using Text = uint16_t;  // the place of a text in the recorder; 0 is ""

inline uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return uint64_t(std::chrono::nanoseconds(now).count());
}

// What is called. `peer` is a collective's root or a message's other side, or kNobody.
struct Call {
  static constexpr int32_t kNobody = -2;
  uint64_t bytes = 0;
  int64_t tag = 0;
  int32_t peer = kNobody;
  Text kind = 0, op = 0, dtype = 0, algorithm = 0, site = 0;
};

// A communicator: its number among those of `world`, and its first member, as splits into several
// groups give all of them the same number.
struct Group {
  uint32_t world, number, first;
};

enum class State : uint8_t { running, done, failed };

struct Record {
  uint64_t number;    // 1… in this process
  uint64_t sequence;  // 1… among the collectives, or the messages, of its group
  uint64_t start_ns, end_ns;
  Call call;
  Group group;
  State state;
};

struct Memory;

struct Header {
  uint64_t magic, begun;
  int64_t unix_ns;  // what the clock's 0 is in Unix time
  int32_t pid, rank, size;
  char job[92];
};

// A copy of a recorder, oldest record first.
struct Snapshot {
  Header header;
  std::vector<Record> records;
  std::vector<std::string> texts;
};

class Recorder {
 public:
  static constexpr size_t kRecords = 1000, kTexts = 2048, kTextBytes = 96;
  static constexpr const char* kName = "pycomm-flight";  // of its file in /proc/PID/fd

  static Recorder& instance();  // created when it is first asked for; never destroyed

  void describe(int rank, int size, std::string_view job);

  // Returns the place of a text; of a long one the end is kept. 0 when there is no more room.
  Text text(std::string_view);

  // Returns the number of the new record.
  uint64_t begin(const Group&, uint64_t sequence, const Call&, uint64_t now_ns);

  void came_from(uint64_t number, Text site);

  // Ends a record that still runs and has not been overwritten; non-zero `received` are its bytes.
  void end(uint64_t number, State, uint64_t now_ns, uint64_t received = 0, Text dtype = 0);

  // Copies this process's recorder, or another's, by its file. Throws std::runtime_error.
  Snapshot read() const;
  static Snapshot read(const std::string& path);

 private:
  Recorder();
  void forked();
  Record& record(uint64_t number);

  Memory* memory_;
  int fd_;
  std::unordered_map<std::string, Text> places_;
};

// The entries of one communicator. Its collectives come one after the other.
class Flight {
 public:
  Flight(uint32_t world, uint32_t number, uint32_t first) : group_{world, number, first} {}

  // One that did not end is taken over: the long way goes on where the quick one could not.
  void collective(const Call& call, uint64_t now_ns) {
    if (current_) return came_from(call.site);
    current_ = Recorder::instance().begin(group_, ++collectives_, call, now_ns);
  }
  // Returns the number of a collective that is to run later, behind others, and is ended by that.
  uint64_t begin(const Call& call, uint64_t now_ns) {
    return Recorder::instance().begin(group_, ++collectives_, call, now_ns);
  }

  void came_from(Text site) { Recorder::instance().came_from(current_, site); }
  void end(State state, uint64_t now_ns) {
    if (current_) Recorder::instance().end(current_, state, now_ns);
    current_ = 0;
  }

  uint64_t message(const Call& call, uint64_t now_ns) {
    return Recorder::instance().begin(group_, ++messages_, call, now_ns);
  }

 private:
  Group group_;
  uint64_t collectives_ = 0, messages_ = 0, current_ = 0;
};

}  // namespace pycomm::flight
