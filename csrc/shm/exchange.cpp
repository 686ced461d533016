#include "shm/exchange.h"

#include <algorithm>
#include <vector>

#include "shm/copy.h"
#include "shm/pieces.h"

namespace pycomm::shm {
namespace {

// Of a root's memory that the others read while it waits; beyond, copying it twice keeps all busy.
constexpr size_t kReadAloneBytes = size_t(2) << 20;

size_t pieces_of(size_t bytes, size_t per) { return (bytes + per - 1) / per; }

// Of a chunk of `bytes`, how many are in piece k.
size_t piece_bytes(size_t bytes, size_t per, size_t k) {
  return std::min(per, bytes - std::min(bytes, k * per));
}

// Each rank's place in a piece of about `bytes` that holds a part of the chunk for every other
// rank; `longest`: the bytes of the longest chunk.
struct Slots {
  Slots(int size, size_t longest, size_t bytes = Board::kSegmentBytes)
      : size(size), others(size_t(std::max(1, size - 1))) {
    per = std::min(bytes / others / 64 * 64, in_lines(longest));
  }
  size_t at(int from, int to) const { return size_t((to - from - 1 + size) % size) * per; }
  size_t bytes() const { return others * per; }
  int size;
  size_t others, per;
};

void gather_pipelined(Board& board, const char* in, char* out, size_t bytes, int root,
                      const CopyOut& copy_out, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const size_t per = board.one_way_bytes(bytes);
  auto length = [&](size_t k) { return piece_bytes(bytes, per, k); };
  auto bring = [&](size_t k) {
    if (me != root) board.bring(k, 0, in + k * per, length(k));
  };
  auto consume = [&](size_t k) {
    for (int p = 0; p < size && me == root; p++)
      if (p != root) copy_out(out + size_t(p) * bytes + k * per, board.piece(p, k), length(k));
  };
  pipeline(board, pieces_of(bytes, per), std::min(per, bytes), idle, bring, consume);
}

void scatter_pipelined(Board& board, const char* in, char* out, size_t bytes, int root,
                       const CopyOut& copy_out, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const Slots slots(size, bytes, board.one_way_bytes(bytes * size_t(size - 1)));
  auto length = [&](size_t k) { return piece_bytes(bytes, slots.per, k); };
  auto bring = [&](size_t k) {
    for (int p = 0; p < size && me == root; p++)
      if (p != root)
        board.bring(k, slots.at(root, p), in + size_t(p) * bytes + k * slots.per, length(k));
  };
  auto consume = [&](size_t k) {
    if (me != root)
      copy_out(out + k * slots.per, board.piece(root, k) + slots.at(root, me), length(k));
  };
  pipeline(board, pieces_of(bytes, slots.per), slots.bytes(), idle, bring, consume);
}

void all_to_all_pipelined(Board& board, const char* in, char* out, const Traffic& t, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const Slots slots(size, t.longest);
  auto length = [&](const size_t* offsets, int p, size_t k) {
    return p == me ? 0 : piece_bytes(offsets[p + 1] - offsets[p], slots.per, k);
  };
  auto bring = [&](size_t k) {
    for (int p = 0; p < size; p++)
      board.bring(k, slots.at(me, p), in + t.sent[p] + k * slots.per, length(t.sent, p, k));
  };
  auto consume = [&](size_t k) {
    for (int p = 0; p < size; p++)
      copy(out + t.received[p] + k * slots.per, board.piece(p, k) + slots.at(p, me),
           length(t.received, p, k));
  };
  pipeline(board, pieces_of(t.longest, slots.per), slots.bytes(), idle, bring, consume);
}

}  // namespace

void gather(Board& board, uint64_t fingerprint, const void* in, void* out, size_t bytes, int root,
            Idle& idle) {
  const int me = board.rank(), size = board.size();
  const bool mine = me == root;
  auto* from = static_cast<const char*>(in);
  auto* to = static_cast<char*>(out);
  if (bytes * size_t(size) > Board::kSmallBytes) idle.park();
  Call call = fingerprint;
  call.target = out;
  const Path path = board.open(call, mine ? nullptr : in, bytes, idle);
  const CopyOut copy_out(2 * bytes * size_t(size));
  if (mine) copy_out(to + size_t(root) * bytes, from, bytes);
  if (path == Path::pipelined)
    return gather_pipelined(board, from, to, bytes, root, copy_out, idle);
  const bool given = board.has_target(root);
  const size_t begin = given ? own_part(bytes, size) : 0;  // the root takes the rest
  if (!mine && given) copy_out(board.target(root) + size_t(me) * bytes, from, begin);
  for (int p = 0; p < size && mine; p++)
    if (p != root && bytes)
      copy_out(to + size_t(p) * bytes + begin, board.source(p) + begin, bytes - begin);
  if (path == Path::in_place) board.barrier(idle);
}

void scatter(Board& board, Call call, const void* in, Chunk out,
             const std::function<Chunk(const int64_t* header)>& allocate, int root, Idle& idle) {
  const int me = board.rank(), size = board.size();
  auto* from = static_cast<const char*>(in);
  Offered offered(out.bytes, root, size);
  if (offered.bytes() > Board::kSmallBytes) idle.park();
  const char* offer = me == root && offered.bytes() ? from + offered.begin : nullptr;
  call.target = me == root ? nullptr : out.data;
  call.remote = me != root || offered.bytes() <= kReadAloneBytes;
  const Path path = board.open(call, offer, offered.bytes(), idle);
  if (allocate) out = allocate(board.header(root)), offered = {out.bytes, root, size};
  const auto [to, bytes] = out;
  const CopyOut copy_out(2 * bytes * size_t(size));
  if (me == root) copy_out(to, from + size_t(root) * bytes, bytes);
  if (path == Path::pipelined)
    return scatter_pipelined(board, from, to, bytes, root, copy_out, idle);
  const size_t own = own_part(bytes, size);
  if (me != root)
    board.take(root, size_t(me) * bytes - offered.begin, to, board.has_target(me) ? own : bytes,
               copy_out);
  for (int p = 0; p < size && me == root; p++)
    if (board.has_target(p))
      copy_out(board.target(p) + own, from + size_t(p) * bytes + own, bytes - own);
  if (path != Path::staged) board.barrier(idle);
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
  Call call = fingerprint;
  call.remote = true;
  const Path path = board.open(call, offer, offered.bytes(), idle);
  const CopyOut copy_out((t.sent[size] + t.received[size]) * size_t(size));
  copy_out(to + t.received[me], from + t.sent[me], bytes(me));
  if (path == Path::pipelined) return all_to_all_pipelined(board, from, to, t, idle);
  for (int p = 0; p < size; p++)
    if (p != me) board.take(p, t.starts[p], to + t.received[p], bytes(p), copy_out);
  if (path != Path::staged) board.barrier(idle);
}

}  // namespace pycomm::shm
