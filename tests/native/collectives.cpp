// Random collectives, each compared with what one thread computes from everyone's data.
#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>

#include "fingerprint.h"
#include "ranks.h"
#include "shm/direct.h"
#include "shm/exchange.h"

namespace pycomm::test {
namespace {

constexpr int kFloat32 = 11;

// The user's operation on float32: neither commutes nor associates.
void half_plus(void* partial, const void* x, size_t count) {
  auto* a = static_cast<float*>(partial);
  auto* b = static_cast<const float*>(x);
  for (size_t i = 0; i < count; i++) a[i] = a[i] / 2 + b[i];
}

cpu::Reduction some_reduction(Random& random, int size) {
  if (random.once_in(10)) return {kFloat32, cpu::kBuiltinOps, 1.0, size, half_plus};
  cpu::Reduction r{0, 0, 0.3, size};
  do {
    r.dtype = int(random.below(17));
    r.op = int(random.below(cpu::kBuiltinOps));
  } while (!cpu::loops(r).widen);
  return r;
}

// Around every limit at which a board takes another path, and anything between.
size_t some_bytes(Random& random) {
  switch (random.below(9)) {
    case 0:
      return 0;
    case 1:
      return random.near(shm::Line::kPayloadBytes, 16);
    case 2:
      return random.near(shm::Board::kInPlaceBytes, 16);
    case 3:
      return random.near(shm::Board::kWholeBytes / 64, 16);
    case 4:
      return random.near(shm::Board::kSmallBytes, 64);
    case 5:
      return random.near(shm::Board::kWholeBytes, 64);
    case 6:
      return random.below(size_t(1) << 20);
    default:
      return random.below(20000);
  }
}

// One operation, as one rank sees it. `shared` was drawn on all ranks alike.
class Operation {
 public:
  Operation(Rank& rank, uint64_t step)
      : board(rank.board),
        idle(rank.idle),
        me(rank.me()),
        size(rank.size()),
        root(int(rank.shared.below(size_t(size)))),
        fingerprint(Fingerprint("step").add(step).value()),
        r(some_reduction(rank.shared, size)),
        item(cpu::item_bytes(r.dtype)),
        content_(rank.shared.next()) {
    const size_t memory = rank.shared.below(3);  // on all ranks: the heap, a slab, or either
    in_slab_ = memory == 2 ? rank.own.once_in(2) : memory == 1;
    shift_ = 16 * rank.own.below(4);
    board.staging.way = shm::PastCaches(rank.own.below(3));
  }

  std::unique_ptr<Buffer> buffer(size_t bytes) const {
    return std::make_unique<Buffer>(bytes, in_slab_, shift_);
  }

  // What rank p brings.
  std::vector<char> data(int p, size_t bytes) const {
    std::vector<uint64_t> words(bytes / 8 + 1);
    Random random(content_, p);
    for (uint64_t& word : words) word = random.next();
    auto* begin = reinterpret_cast<const char*>(words.data());
    return {begin, begin + bytes};
  }

  std::unique_ptr<Buffer> mine(size_t bytes) const {
    auto b = buffer(bytes);
    const auto d = data(me, bytes);
    std::copy(d.begin(), d.end(), b->data());
    return b;
  }

  std::vector<char> reduced(size_t count) const {
    std::vector<std::vector<char>> all;
    for (int p = 0; p < size; p++) all.push_back(data(p, count * item));
    std::vector<const void*> in;
    for (auto& d : all) in.push_back(d.data());
    std::vector<char> total(count * item);
    void* out = total.data();
    cpu::reduce(in.data(), &out, 1, count, r);
    return total;
  }

  void compare(const char* what, const Buffer& got, const std::vector<char>& want) const {
    expect(got.bytes() == want.size() && std::equal(want.begin(), want.end(), got.data()),
           std::string(what) + " of " + std::to_string(want.size()) + " bytes, rank " +
               std::to_string(me) + " of " + std::to_string(size) + ": wrong result");
  }

  shm::Board& board;
  shm::Idle& idle;
  int me, size, root;
  uint64_t fingerprint;
  cpu::Reduction r;
  size_t item;

 private:
  uint64_t content_;
  bool in_slab_;
  size_t shift_;
};

using Bytes = std::vector<char>;

void append(Bytes& to, const Bytes& from, size_t begin, size_t end) {
  to.insert(to.end(), from.begin() + ptrdiff_t(begin), from.begin() + ptrdiff_t(end));
}

// Offsets of `size` chunks, also empty ones; sometimes they are even.
std::vector<size_t> some_offsets(Random& random, int size) {
  const bool even = random.once_in(2);
  const size_t chunk = some_bytes(random) / 16;
  std::vector<size_t> offsets{0};
  for (int p = 0; p < size; p++)
    offsets.push_back(offsets.back() + (even ? chunk : random.below(chunk + 1)));
  return offsets;
}

void barrier(Operation& o, Random&) { shm::barrier(o.board, o.fingerprint, o.idle); }

void all_reduce(Operation& o, Random& random) {
  const size_t count = some_bytes(random) / o.item;
  auto x = o.mine(count * o.item);
  shm::all_reduce(o.board, o.fingerprint, x->data(), count, o.r, o.idle);
  o.compare("all_reduce", *x, o.reduced(count));
}

void reduce(Operation& o, Random& random) {
  const size_t count = some_bytes(random) / o.item;
  auto x = o.mine(count * o.item);
  shm::reduce(o.board, o.fingerprint, x->data(), count, o.r, o.root, o.idle);
  o.compare("reduce", *x, o.me == o.root ? o.reduced(count) : o.data(o.me, count * o.item));
}

void broadcast(Operation& o, Random& random) {
  const size_t bytes = some_bytes(random);
  auto x = o.mine(bytes);
  shm::broadcast(o.board, o.fingerprint, x->data(), bytes, o.root, o.idle);
  o.compare("broadcast", *x, o.data(o.root, bytes));
}

void all_gather(Operation& o, Random& random) {
  auto offsets = some_offsets(random, o.size);
  for (size_t& offset : offsets) offset *= o.item;
  auto bytes = [&](int p) { return offsets[p + 1] - offsets[p]; };
  Bytes want;
  for (int p = 0; p < o.size; p++) append(want, o.data(p, bytes(p)), 0, bytes(p));
  auto x = o.mine(bytes(o.me)), out = o.buffer(want.size());
  const bool in_place = random.once_in(3);
  if (in_place) std::copy_n(x->data(), bytes(o.me), out->data() + offsets[o.me]);
  const char* in = in_place ? out->data() + offsets[o.me] : x->data();
  shm::all_gather(o.board, o.fingerprint, in, out->data(), offsets.data(), o.idle);
  o.compare("all_gather", *out, want);
}

void reduce_scatter(Operation& o, Random& random) {
  const auto offsets = some_offsets(random, o.size);
  auto x = o.mine(offsets.back() * o.item),
       out = o.buffer((offsets[o.me + 1] - offsets[o.me]) * o.item);
  shm::reduce_scatter(o.board, o.fingerprint, x->data(), out->data(), offsets.data(), o.r, o.idle);
  Bytes want;
  append(want, o.reduced(offsets.back()), offsets[o.me] * o.item, offsets[o.me + 1] * o.item);
  o.compare("reduce_scatter", *out, want);
}

void gather(Operation& o, Random& random) {
  const size_t bytes = some_bytes(random) / size_t(o.size);
  auto x = o.mine(bytes), out = o.buffer(o.me == o.root ? bytes * size_t(o.size) : 0);
  shm::gather(o.board, o.fingerprint, x->data(), out->data(), bytes, o.root, o.idle);
  Bytes want;
  for (int p = 0; p < o.size && o.me == o.root; p++) append(want, o.data(p, bytes), 0, bytes);
  o.compare("gather", *out, want);
}

void scatter(Operation& o, Random& random) {
  const size_t bytes = some_bytes(random) / size_t(o.size), all = bytes * size_t(o.size);
  auto x = o.mine(o.me == o.root ? all : 0), out = o.buffer(bytes);
  shm::scatter(o.board, o.fingerprint, x->data(), {out->data(), bytes}, nullptr, o.root, o.idle);
  Bytes want;
  append(want, o.data(o.root, all), bytes * size_t(o.me), bytes * size_t(o.me + 1));
  o.compare("scatter", *out, want);
}

void all_to_all(Operation& o, Random& random) {
  std::vector<std::vector<size_t>> sent;  // by sender: offsets of its chunks
  for (int p = 0; p < o.size; p++) sent.push_back(some_offsets(random, o.size));
  auto bytes = [&](int from, int to) { return sent[from][to + 1] - sent[from][to]; };
  std::vector<size_t> received{0}, starts;
  size_t longest = 0;
  Bytes want;
  for (int p = 0; p < o.size; p++) {
    received.push_back(received.back() + bytes(p, o.me));
    starts.push_back(sent[p][o.me] - shm::Offered(sent[p].data(), p, o.size).begin);
    append(want, o.data(p, sent[p].back()), sent[p][o.me], sent[p][o.me + 1]);
    for (int to = 0; to < o.size; to++) longest = std::max(longest, bytes(p, to));
  }
  auto x = o.mine(sent[o.me].back()), out = o.buffer(want.size());
  const shm::Traffic traffic{sent[o.me].data(), received.data(), starts.data(), longest};
  shm::all_to_all(o.board, o.fingerprint, x->data(), out->data(), traffic, o.idle);
  o.compare("all_to_all", *out, want);
}

void (*const kKinds[])(Operation&, Random&) = {barrier,   all_reduce, reduce,
                                               broadcast, all_gather, reduce_scatter,
                                               gather,    scatter,    all_to_all};

void random_steps(Rank& rank, int steps) {
  for (int step = 0; step < steps; step++) {
    auto kind = kKinds[rank.shared.below(std::size(kKinds))];
    rank.dawdle();
    Operation operation(rank, uint64_t(step));
    kind(operation, rank.shared);
  }
}

void on_one_board(const Settings& settings) {
  for (int size = 1; size <= 5; size++)
    for (bool crowded : {true, false})
      play_ranks({size, crowded, 60, settings.seed + uint64_t(size)},
                 [&](Rank& rank) { random_steps(rank, settings.steps); });
}

// With those of made-up sockets, too: in blocks, in turn, and one rank by itself.
void in_groups(const Settings& settings) {
  const int steps = settings.steps / 50;
  for (int size : {17, 20, 33})
    play_ranks({size, true, 60, settings.seed}, [&](Rank& rank) { random_steps(rank, steps); });
  for (const auto& groups : {shm::Groups{{0, 1}, {2, 3}}, {{0, 2}, {1, 3}}, {{0}, {1, 2, 3}}})
    play_ranks({4, true, 60, settings.seed, groups},
               [&](Rank& rank) { random_steps(rank, settings.steps / 2); });
}

void expect_groups(int size, const std::vector<int>& sockets, const shm::Groups& groups) {
  expect(shm::groups_of(size, false, sockets) == groups, "groups of " + std::to_string(size));
}

void of_sockets(const Settings&) {
  expect_groups(16, {}, {});
  expect(shm::groups_of(17, true, {}).empty(), "groups of ranks that share cores");
  expect_groups(17, {}, {{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9, 10}, {11, 12, 13, 14, 15, 16}});
  std::vector<int> alternating;
  for (int r = 0; r < 18; r++) alternating.push_back(r % 2 ? 7 : -1);
  expect_groups(18, alternating,
                {{0, 2, 4, 6}, {8, 10, 12, 14, 16}, {1, 3, 5, 7}, {9, 11, 13, 15, 17}});
}

// As communicators of one process have it: their slabs are shared.
void on_several_boards(const Settings& settings) {
  std::vector<std::thread> groups;
  for (int size : {2, 3, 2})
    groups.emplace_back([&settings, size, seed = settings.seed + groups.size()] {
      play_ranks({size, true, 60, seed}, [&](Rank& rank) { random_steps(rank, settings.steps); });
    });
  for (auto& group : groups) group.join();
}

const Scenario one("collectives", on_one_board), several("boards", on_several_boards),
    sockets("sockets", of_sockets), groups("groups", in_groups);

}  // namespace
}  // namespace pycomm::test
