// Ranks that make different calls, leave, or come too late: what the others get, and their memory.
#include <chrono>
#include <cstring>
#include <thread>

#include "fingerprint.h"
#include "ranks.h"
#include "shm/direct.h"

namespace pycomm::test {
namespace {

constexpr cpu::Reduction kSum{4, 0};  // of int64
constexpr size_t kCounts[] = {1, 500, 5000, 100000};

uint64_t print(const char* call) { return Fingerprint(call).value(); }

void good_steps(Rank& rank, size_t steps) {
  for (size_t k = 0; k < steps; k++) {
    int64_t x = 1;
    rank.dawdle();
    shm::all_reduce(rank.board, print("good"), &x, 1, kSum, rank.idle);
    expect(x == rank.size(), "a sum before the failure");
  }
}

// A reduction of `count` numbers that must throw and leave them alone.
template <class Failure>
Failure failing_sum(Rank& rank, const char* call, size_t count) {
  Buffer x(count * sizeof(int64_t), rank.own.once_in(2), 0);
  std::memset(x.data(), 7, x.bytes());
  const auto failure = expect_failure<Failure>(
      call, [&] { shm::all_reduce(rank.board, print(call), x.data(), count, kSum, rank.idle); });
  for (size_t i = 0; i < x.bytes(); i++) expect(x.data()[i] == 7, "memory changed");
  expect_failure<Failure>("the next call", [&] { shm::barrier(rank.board, 0, rank.idle); });
  return failure;
}

void mismatch(Rank& rank) {
  good_steps(rank, rank.shared.below(5));
  const bool other = rank.me() == int(rank.shared.below(size_t(rank.size())));
  const size_t count = kCounts[rank.shared.below(4)];
  if (other && rank.shared.once_in(2))
    expect_failure<shm::Mismatch>("a barrier", [&] { shm::barrier(rank.board, 0, rank.idle); });
  else
    failing_sum<shm::Mismatch>(rank, other ? "other" : "one", other ? count / 2 + 1 : count);
  const auto notes = rank.board.exchange_notes(
      "rank " + std::to_string(rank.me()) + std::string(1500, '.'), rank.idle);
  for (int r = 0; r < rank.size(); r++)
    expect(notes[r].starts_with("rank " + std::to_string(r) + "."), "a note");
}

void departure(Rank& rank) {
  good_steps(rank, rank.shared.below(5));
  const int leaver = int(rank.shared.below(size_t(rank.size())));
  const size_t count = kCounts[rank.shared.below(4)];
  if (rank.me() == leaver) return rank.board.depart();
  expect(failing_sum<shm::Departed>(rank, "left alone", count).rank == leaver, "who has left");
}

// The late rank comes when nobody is there any more.
void timeout(Rank& rank) {
  good_steps(rank, 3);
  const int late = int(rank.shared.below(size_t(rank.size())));
  if (rank.me() == late) {
    for (int r = 0; r < rank.size(); r++)
      while (r != late && !rank.board.has_departed(r)) std::this_thread::yield();
    return;
  }
  expect(failing_sum<shm::Stalled>(rank, "too early", 100000).rank == late, "who is late");
}

struct Signal {};

struct Impatient : shm::Idle {
  void poll() override { throw Signal(); }
};

void interruption(Rank& rank) {
  good_steps(rank, 3);
  Impatient idle;
  if (rank.me() == 0) {
    expect_failure<Signal>("a signal", [&] { shm::barrier(rank.board, 0, idle); });
    expect_failure<shm::Interrupted>("later", [&] { shm::barrier(rank.board, 0, rank.idle); });
    rank.board.depart();
  } else {
    while (!rank.board.has_departed(0)) std::this_thread::yield();
  }
}

// A leader gives up before its group is complete: nobody else can say that it is.
void leader_gives_up(Rank& rank) {
  const int last = rank.size() - 1;
  Impatient idle;
  if (rank.me() == 0) {
    expect_failure<Signal>("a signal", [&] { shm::barrier(rank.board, 0, idle); });
    return rank.board.depart();
  }
  while (rank.me() == last && !rank.board.has_departed(0)) std::this_thread::yield();
  expect(failing_sum<shm::Departed>(rank, "no leader", 500).rank == 0, "who has left");
}

void in_groups(const Settings& settings) {
  for (int size : {17, 20, 33}) {
    for (uint64_t k = 0; k < 3; k++) {
      play_ranks({size, true, 60, settings.seed + k}, mismatch);
      play_ranks({size, true, 60, settings.seed + k}, departure);
    }
    play_ranks({size, true, 2, settings.seed}, timeout);
  }
  play_ranks({5, true, 20, settings.seed, shm::Groups{{0, 2, 4}, {1, 3}}}, leader_gives_up);
  play_ranks({5, true, 20, settings.seed, shm::Groups{{0, 2, 4}, {1, 3}}}, mismatch);
}

void run(const Settings& settings) {
  for (int size = 2; size <= 4; size++) {
    for (uint64_t k = 0; k < 5; k++) {
      play_ranks({size, true, 20, settings.seed + k}, mismatch);
      play_ranks({size, k % 2 == 0, 20, settings.seed + k}, departure);
    }
    play_ranks({size, true, 0.2, settings.seed}, timeout);
    play_ranks({size, true, 20, settings.seed}, interruption);
  }
}

const Scenario failures("failures", run), grouped("late in groups", in_groups);

}  // namespace
}  // namespace pycomm::test
