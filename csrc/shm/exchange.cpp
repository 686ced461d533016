#include "shm/exchange.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "shm/pieces.h"

namespace pycomm::shm {
namespace {

void copy(char* to, const char* from, size_t bytes) {
  if (bytes && to != from) std::memcpy(to, from, bytes);
}

size_t pieces_of(size_t bytes, size_t per) { return (bytes + per - 1) / per; }

// Of a chunk of `bytes`, how many are in piece k.
size_t piece_bytes(size_t bytes, size_t per, size_t k) {
  return std::min(per, bytes - std::min(bytes, k * per));
}

// Each rank's place in a piece that holds a part of the chunk for every other rank.
struct Slots {
  explicit Slots(int size)
      : size(size), per(Board::kSegmentBytes / size_t(std::max(1, size - 1)) / 64 * 64) {}
  size_t at(int from, int to) const { return size_t((to - from - 1 + size) % size) * per; }
  int size;
  size_t per;
};

// Each rank reduces its share over all buffers and writes the result into the root's.
void reduce_in_place(Board& board, size_t count, const cpu::Reduction& r, int root, Idle& idle) {
  const size_t item = cpu::item_bytes(r.dtype);
  const Shares shares(count, board.size(), item);
  const size_t begin = shares.begin(board.rank()), mine = shares.end(board.rank()) - begin;
  const auto buffers = board.sources(begin * item);
  reduce(buffers, {buffers[root]}, mine, r);
  board.barrier(idle);
}

// Bring a piece but for this rank's share, reduce that share of all ranks' pieces; the root takes
// the others' shares.
void reduce_pipelined(Board& board, char* data, size_t count, const cpu::Reduction& r, int root,
                      Idle& idle) {
  const size_t item = cpu::item_bytes(r.dtype), per = Board::kSegmentBytes / item,
               pieces = pieces_of(count, per);
  const int me = board.rank(), size = board.size();
  auto at = [&](size_t k) { return data + k * per * item; };
  auto shares = [&](size_t k) { return Shares(std::min(per, count - k * per), size, item); };
  auto bring = [&](size_t k) {
    const Shares s = shares(k);
    const size_t begin = s.begin(me) * item, end = s.end(me) * item;
    std::memcpy(board.piece_in(me, k), at(k), begin);
    std::memcpy(board.piece_in(me, k) + end, at(k) + end, s.count * item - end);
  };
  auto take = [&](size_t k) {
    const Shares s = shares(k);
    for (int p = 0; p < size; p++)
      if (p != me)
        std::memcpy(at(k) + s.begin(p) * item, board.piece_out(p, k) + s.begin(p) * item,
                    (s.end(p) - s.begin(p)) * item);
  };
  auto consume = [&](size_t k) {
    const Shares s = shares(k);
    const size_t begin = s.begin(me) * item;
    std::vector<char*> in(size), out{(me == root ? at(k) : board.piece_out(me, k)) + begin};
    for (int p = 0; p < size; p++) in[p] = (p == me ? at(k) : board.piece_in(p, k)) + begin;
    reduce(in, out, s.end(me) - s.begin(me), r);
    if (me == root && k) take(k - 1);
  };
  pipeline(board, pieces, idle, bring, consume);
  if (me == root) take(pieces - 1);
}

void gather_pipelined(Board& board, const char* in, char* out, size_t bytes, int root, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const size_t per = Board::kSegmentBytes;
  auto length = [&](size_t k) { return piece_bytes(bytes, per, k); };
  auto bring = [&](size_t k) {
    if (me != root) copy(board.piece_in(me, k), in + k * per, length(k));
  };
  auto consume = [&](size_t k) {
    for (int p = 0; p < size && me == root; p++)
      if (p != root) copy(out + size_t(p) * bytes + k * per, board.piece_in(p, k), length(k));
  };
  pipeline(board, pieces_of(bytes, per), idle, bring, consume);
}

void scatter_pipelined(Board& board, const char* in, char* out, size_t bytes, int root,
                       Idle& idle) {
  const int me = board.rank(), size = board.size();
  const Slots slots(size);
  auto length = [&](size_t k) { return piece_bytes(bytes, slots.per, k); };
  auto bring = [&](size_t k) {
    for (int p = 0; p < size && me == root; p++)
      if (p != root)
        copy(board.piece_in(root, k) + slots.at(root, p), in + size_t(p) * bytes + k * slots.per,
             length(k));
  };
  auto consume = [&](size_t k) {
    if (me != root)
      copy(out + k * slots.per, board.piece_in(root, k) + slots.at(root, me), length(k));
  };
  pipeline(board, pieces_of(bytes, slots.per), idle, bring, consume);
}

void all_to_all_pipelined(Board& board, const char* in, char* out, const Traffic& t, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const Slots slots(size);
  auto length = [&](const size_t* offsets, int p, size_t k) {
    return p == me ? 0 : piece_bytes(offsets[p + 1] - offsets[p], slots.per, k);
  };
  auto bring = [&](size_t k) {
    for (int p = 0; p < size; p++)
      copy(board.piece_in(me, k) + slots.at(me, p), in + t.sent[p] + k * slots.per,
           length(t.sent, p, k));
  };
  auto consume = [&](size_t k) {
    for (int p = 0; p < size; p++)
      copy(out + t.received[p] + k * slots.per, board.piece_in(p, k) + slots.at(p, me),
           length(t.received, p, k));
  };
  pipeline(board, pieces_of(t.longest, slots.per), idle, bring, consume);
}

}  // namespace

void reduce(Board& board, uint64_t fingerprint, void* data, size_t count, cpu::Reduction r,
            int root, Idle& idle) {
  r.inputs = board.size();
  const size_t bytes = count * cpu::item_bytes(r.dtype);
  if (bytes > Board::kSmallBytes) idle.park();
  switch (board.open(fingerprint, data, bytes, idle)) {
    case Path::staged:
      if (board.rank() == root) reduce(board.sources(), {static_cast<char*>(data)}, count, r);
      return;
    case Path::in_place:
      return reduce_in_place(board, count, r, root, idle);
    case Path::pipelined:
      return reduce_pipelined(board, static_cast<char*>(data), count, r, root, idle);
  }
}

void gather(Board& board, uint64_t fingerprint, const void* in, void* out, size_t bytes, int root,
            Idle& idle) {
  const bool mine = board.rank() == root;
  auto* from = static_cast<const char*>(in);
  auto* to = static_cast<char*>(out);
  if (bytes * size_t(board.size()) > Board::kSmallBytes) idle.park();
  const Path path = board.open(fingerprint, mine ? nullptr : in, bytes, idle);
  if (mine) copy(to + size_t(root) * bytes, from, bytes);
  if (path == Path::pipelined) return gather_pipelined(board, from, to, bytes, root, idle);
  for (int p = 0; p < board.size() && mine; p++)
    if (p != root && bytes) copy(to + size_t(p) * bytes, board.source(p), bytes);
  if (path == Path::in_place) board.barrier(idle);
}

void scatter(Board& board, uint64_t fingerprint, const void* in, void* out, size_t bytes, int root,
             Idle& idle) {
  const int me = board.rank(), size = board.size();
  auto* from = static_cast<const char*>(in);
  auto* to = static_cast<char*>(out);
  std::vector<size_t> offsets(size_t(size) + 1);
  for (int p = 0; p <= size; p++) offsets[p] = size_t(p) * bytes;
  const Offered offered(offsets.data(), root, size);
  if (offered.bytes() > Board::kSmallBytes) idle.park();
  const char* offer = me == root && offered.bytes() ? from + offered.begin : nullptr;
  const Path path = board.open(fingerprint, offer, offered.bytes(), idle);
  if (me == root) copy(to, from + offsets[root], bytes);
  if (path == Path::pipelined) return scatter_pipelined(board, from, to, bytes, root, idle);
  if (me != root && bytes) copy(to, board.source(root) + offsets[me] - offered.begin, bytes);
  if (path == Path::in_place) board.barrier(idle);
}

void all_to_all(Board& board, uint64_t fingerprint, const void* in, void* out, const Traffic& t,
                Idle& idle) {
  const int me = board.rank(), size = board.size();
  auto* from = static_cast<const char*>(in);
  auto* to = static_cast<char*>(out);
  auto bytes = [&](int p) { return t.received[p + 1] - t.received[p]; };
  const Offered offered(t.sent, me, size);
  if (std::max(offered.bytes(), t.received[size]) > Board::kSmallBytes) idle.park();
  const char* offer = offered.bytes() ? from + offered.begin : nullptr;
  const Path path = board.open(fingerprint, offer, offered.bytes(), idle);
  copy(to + t.received[me], from + t.sent[me], bytes(me));
  if (path == Path::pipelined) return all_to_all_pipelined(board, from, to, t, idle);
  for (int p = 0; p < size; p++)
    if (p != me && bytes(p)) copy(to + t.received[p], board.source(p) + t.starts[p], bytes(p));
  if (path == Path::in_place) board.barrier(idle);
}

}  // namespace pycomm::shm
