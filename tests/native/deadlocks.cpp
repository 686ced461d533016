// The table of who waits for whom: cycles are told to all in them, and waiting that ends is none.
#include <chrono>
#include <thread>

#include "ranks.h"
#include "shm/direct.h"
#include "shm/waits.h"

namespace pycomm::test {
namespace {

using namespace std::chrono_literals;

// Two boards of the same ranks; `play` gets a rank of each, both watched by the rank's own table.
void play_watched(int size, const std::function<void(Rank&, Rank&, shm::Waits&)>& play) {
  const auto table = shm::Segment::create(shm::Waits::bytes(size));
  const auto second = shm::Segment::create(shm::Board::bytes(size));
  play_ranks({size, true, 20}, [&](Rank& rank) {
    shm::Waits waits(table.alias(), rank.me(), size);
    shm::Board board(second.alias(), rank.me(), size, true, 20, shm::groups_of(size, false, {}));
    std::vector<int> processes;
    for (int r = 0; r < size; r++) processes.push_back(r);
    rank.board.watch(&waits, processes);
    board.watch(&waits, processes);
    Rank other{board, rank.idle, rank.shared, rank.own};
    play(rank, other, waits);
  });
}

void barrier(Rank& rank) { shm::barrier(rank.board, 0, rank.idle); }

void opposite_order(Rank& first, Rank& second, shm::Waits&) {
  const auto deadlock = expect_failure<shm::Deadlock>(
      "opposite order", [&] { barrier(first.me() == 0 ? first : second); });
  for (int process : deadlock.cycle) expect(process == 0 || process == 1, "who is in the cycle");
}

// Those outside of the cycle hear that the last rank has left.
void last_rank_elsewhere(Rank& first, Rank& second, shm::Waits&) {
  const int last = first.size() - 1;
  try {
    barrier(first.me() == last ? first : second);
    fail("a deadlock: nothing was thrown");
  } catch (const shm::Deadlock& deadlock) {
    for (int process : deadlock.cycle) expect(process == 0 || process == last, "who is in it");
  } catch (const shm::Departed& departed) {
    expect(first.me() != 0 && first.me() != last && departed.rank == last, "who has left");
  }
}

// By looking, as messages do.
void ring(Rank& first, Rank&, shm::Waits& waits) {
  const auto deadlock = expect_failure<shm::Deadlock>("a ring", [&] {
    waits.begin();
    for (;;) {
      waits.look((first.me() + 1) % first.size());
      std::this_thread::sleep_for(1ms);
    }
  });
  waits.end();
  expect(deadlock.cycle.empty() || int(deadlock.cycle.size()) == first.size(), "the whole ring");
}

// Rank 0 waits in the first board for a rank that waits for rank 0's other thread.
void opened_by_another_thread(Rank& first, Rank& second, shm::Waits& waits) {
  auto late = [&] {
    std::this_thread::sleep_for(1s);
    barrier(second);
  };
  if (first.me() == 0) {
    waits.asynchronous(1);
    std::thread engine([&] {
      shm::Waits::leave_out_this_thread();
      late();
      waits.asynchronous(-1);
    });
    barrier(first);
    engine.join();
  } else {
    barrier(second);
    barrier(first);
  }
}

// Both threads of every process wait now and then, for different boards.
void two_threads(Rank& first, Rank& second, shm::Waits&) {
  auto steps = [](Rank& rank) {
    for (int k = 0; k < 30; k++) {
      if (rank.own.once_in(size_t(rank.size()))) std::this_thread::sleep_for(10ms);
      barrier(rank);
    }
  };
  std::thread engine([&] { steps(second); });
  steps(first);
  engine.join();
}

void run(const Settings&) {
  play_watched(2, opposite_order);
  play_watched(20, last_rank_elsewhere);
  for (int size = 2; size <= 4; size++) play_watched(size, ring);
  play_watched(2, opened_by_another_thread);
  play_watched(3, opened_by_another_thread);
  play_watched(3, two_threads);
}

const Scenario deadlocks("deadlocks", run);

}  // namespace
}  // namespace pycomm::test
