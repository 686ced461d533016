// Symmetric buffers that several threads allocate, fill, look up and free.
#include "shm/slab.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "ranks.h"

namespace pycomm::test {
namespace {

void check(const Buffer& buffer, char mark) {
  expect(
      std::all_of(buffer.data(), buffer.data() + buffer.bytes(), [=](char c) { return c == mark; }),
      "a symmetric buffer holds what was not written to it");
  const shm::Place place = shm::Slabs::instance().find(buffer.data());
  const auto slab = shm::map_slab(getpid(), place);
  expect(slab && slab->data() + place.offset == buffer.data(), "where a symmetric buffer lies");
}

void allocate_and_free(Random random, char mark, int steps) {
  std::vector<std::unique_ptr<Buffer>> kept;
  for (int step = 0; step < steps; step++) {
    const size_t bytes = random.once_in(20) ? random.below(size_t(1) << 20) : random.below(9000);
    kept.push_back(std::make_unique<Buffer>(bytes, true, 16 * random.below(4)));
    std::fill_n(kept.back()->data(), bytes, mark);
    if (random.once_in(2)) {
      const size_t k = random.below(kept.size());
      check(*kept[k], mark);
      kept.erase(kept.begin() + ptrdiff_t(k));
    }
  }
  for (auto& buffer : kept) check(*buffer, mark);
}

void run(const Settings& settings) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back(allocate_and_free, Random(settings.seed, t), char('a' + t),
                         settings.steps);
  for (auto& thread : threads) thread.join();
  expect(shm::Slabs::instance().bytes_in_use() == 0, "symmetric buffers are left");
  expect(!shm::Slabs::instance().find(&threads).serial, "the stack is no slab");
}

const Scenario slabs("slabs", run);

}  // namespace
}  // namespace pycomm::test
