// What the driver runs under sanitizers: every file here adds a Scenario, and main() runs them all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pycomm::test {

struct Settings {
  uint64_t seed;
  int steps;  // of each run, where a scenario has any
};

struct Scenario {
  Scenario(const char* name, void (*run)(const Settings&)) : name(name), run(run) {
    all().push_back(this);
  }
  static std::vector<Scenario*>& all() {
    static std::vector<Scenario*> scenarios;
    return scenarios;
  }
  const char* name;
  void (*run)(const Settings&);
};

// Ends the process at once: the other ranks would wait for the one that failed.
[[noreturn]] void fail(const std::string& what);

inline void expect(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

template <class Failure, class Call>
Failure expect_failure(const std::string& what, Call call) {
  try {
    call();
  } catch (const Failure& failure) {
    return failure;
  }
  fail(what + ": nothing was thrown");
}

// Numbers that look random and are the same for the same words (splitmix64).
class Random {
 public:
  template <class... Words>
  explicit Random(Words... words) {
    ((state_ = next() ^ uint64_t(words)), ...);
  }
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t below(size_t limit) { return size_t(next() % limit); }
  size_t near(size_t value, size_t distance) { return value - distance + below(2 * distance + 1); }
  bool once_in(size_t times) { return below(times) == 0; }

 private:
  uint64_t state_ = 0;
};

}  // namespace pycomm::test
