// Dropout of one array that ranks hold parts of, compared with masks drawn element by element.
#include "cpu/dropout.h"

#include <algorithm>

#include "cpu/reduce.h"
#include "levels.h"
#include "philox.h"
#include "ranks.h"
#include "shm/direct.h"
#include "values.h"

namespace pycomm::test {
namespace {

// What all ranks draw alike: an array of `samples` × `runs` × `stride` elements, and a mask.
struct Whole {
  Whole(Random& random, int size)
      : dtype(kFloats[random.below(std::size(kFloats))]),
        item(cpu::item_bytes(int(dtype))),
        content(random.next()),
        samples(random.below(3 * size_t(size))),
        runs(1 + random.below(3)),
        stride(random.once_in(3) ? 1 + random.below(3000) : 1 + random.below(70)),
        first_sample(uint32_t(random.next())),
        mask{random.next(), random.next(), uint32_t(random.next()), 1.25} {}

  size_t in_a_sample() const { return runs * stride; }
  size_t bytes() const { return samples * in_a_sample() * item; }

  // The elements of the array that a part of it holds, in order: [first, first + length) of each
  // run of the samples [begin, end).
  template <class Use>
  void each(size_t begin, size_t end, size_t first, size_t length, Use use) const {
    for (size_t s = begin; s < end; s++)
      for (size_t r = 0; r < runs; r++)
        for (size_t i = 0; i < length; i++) use(s, r * stride + first + i);
  }

  DType dtype;
  size_t item;
  uint64_t content;
  size_t samples, runs, stride;
  uint32_t first_sample;
  cpu::Mask mask;
};

std::vector<char> dropped(const Whole& whole) {
  std::vector<char> x(whole.bytes());
  const size_t elements = whole.in_a_sample();
  fill(x.data(), whole.samples * elements, whole.dtype, Random(whole.content));
  with_element(whole.dtype, [&]<class El>(El element) {
    using A = typename El::A;
    whole.each(0, whole.samples, 0, whole.stride, [&](size_t s, size_t e) {
      const auto counter =
          mask_counter(whole.mask.step, whole.first_sample + uint32_t(s), uint32_t(e / 4));
      const bool kept = philox(counter, whole.mask.key).at[e % 4] >= whole.mask.threshold;
      const size_t i = s * elements + e;
      store(x.data(), i, kept ? load(x.data(), i, element) * A(whole.mask.scale) : A(0), element);
    });
  });
  return x;
}

// As by data parallelism: every rank writes its samples of an array that all of them see.
void samples_of_one_array(Rank& rank, const Whole& whole, char*& array) {
  Buffer x(rank.me() == 0 ? whole.bytes() : 0, true, 0);
  if (rank.me() == 0) {
    fill(x.data(), whole.bytes() / whole.item, whole.dtype, Random(whole.content));
    array = x.data();
  }
  shm::barrier(rank.board, 0, rank.idle);
  const size_t size = size_t(rank.size()), begin = whole.samples * size_t(rank.me()) / size,
               end = whole.samples * size_t(rank.me() + 1) / size;
  char* mine = array + begin * whole.in_a_sample() * whole.item;
  const cpu::Samples samples{
      whole.first_sample + uint32_t(begin), end - begin, 1, whole.in_a_sample(), 0, 0};
  cpu::dropout(mine, mine, int(whole.dtype), samples, whole.mask);
  shm::barrier(rank.board, 0, rank.idle);
  const auto want = dropped(whole);
  expect(std::equal(want.begin(), want.end(), array), "samples that were dropped from");
  shm::barrier(rank.board, 0, rank.idle);  // rank 0 frees the array
}

// As by tensor parallelism: every rank has some elements of each run.
void columns(Rank& rank, const Whole& whole) {
  const size_t first = rank.own.below(whole.stride), length = rank.own.below(whole.stride - first);
  std::vector<char> all(whole.bytes());
  fill(all.data(), whole.bytes() / whole.item, whole.dtype, Random(whole.content));
  auto part_of = [&](const std::vector<char>& array) {
    std::vector<char> part;
    whole.each(0, whole.samples, first, length, [&](size_t s, size_t e) {
      const auto at = array.begin() + ptrdiff_t((s * whole.in_a_sample() + e) * whole.item);
      part.insert(part.end(), at, at + ptrdiff_t(whole.item));
    });
    return part;
  };
  const auto x = part_of(all);
  std::vector<char> out(x.size());
  const cpu::Samples samples{whole.first_sample, whole.samples, whole.runs, length, first,
                             whole.stride};
  cpu::dropout(x.data(), out.data(), int(whole.dtype), samples, whole.mask);
  expect(out == part_of(dropped(whole)), "columns that were dropped from");
}

void run(const Settings& settings) {
  for (int size = 1; size <= 3; size++) {
    char* array = nullptr;
    at_every_level([&] {
      play_ranks({size, true, 60, settings.seed}, [&](Rank& rank) {
        for (int step = 0; step < settings.steps / 3; step++) {
          rank.dawdle();
          samples_of_one_array(rank, Whole(rank.shared, size), array);
          columns(rank, Whole(rank.shared, size));
        }
      });
    });
  }
}

const Scenario dropout("dropout", run);

}  // namespace
}  // namespace pycomm::test
