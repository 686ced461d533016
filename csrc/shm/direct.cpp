#include "shm/direct.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "shm/copy.h"
#include "shm/pieces.h"

namespace pycomm::shm {
namespace {

constexpr int kEveryone = -1;

// Each rank reduces its share over all buffers and writes the result into all of them, or into the
// root's, in the same pass.
void reduce_in_place(Board& board, size_t count, const cpu::Reduction& r, int root, Idle& idle) {
  const size_t item = cpu::item_bytes(r.dtype);
  const Shares shares(count, board.size(), item);
  const size_t begin = shares.begin(board.rank()), mine = shares.end(board.rank()) - begin;
  const auto& buffers = board.sources(begin * item);
  if (root == kEveryone)
    reduce(buffers, buffers, mine, r);
  else
    reduce(buffers, {buffers[root]}, mine, r);
  board.barrier(idle);
}

// Bring a piece but for this rank's share, reduce that share of all ranks' pieces; everyone, or the
// root, takes the other shares.
void reduce_pipelined(Board& board, char* data, size_t count, const cpu::Reduction& r, int root,
                      Idle& idle) {
  const size_t item = cpu::item_bytes(r.dtype), per = Board::kSegmentBytes / item,
               pieces = (count + per - 1) / per;
  const int me = board.rank(), size = board.size();
  const bool takes = root == kEveryone || root == me;
  auto at = [&](size_t k) { return data + k * per * item; };
  auto shares = [&](size_t k) { return Shares(std::min(per, count - k * per), size, item); };
  auto bring = [&](size_t k) {
    const Shares s = shares(k);
    const size_t begin = s.begin(me) * item, end = s.end(me) * item;
    board.bring(k, 0, at(k), begin);
    board.bring(k, end, at(k) + end, s.count * item - end);
  };
  auto take = [&](size_t k) {
    const Shares s = shares(k);
    for (int p = 0; p < size; p++)
      if (p != me)
        std::memcpy(at(k) + s.begin(p) * item, board.piece(p, k) + s.begin(p) * item,
                    (s.end(p) - s.begin(p)) * item);
  };
  std::vector<char> spare;
  auto reduce_share = [&](size_t k) {
    const Shares s = shares(k);
    const size_t begin = s.begin(me) * item, n = s.end(me) - s.begin(me);
    std::vector<char*> in(size);
    for (int p = 0; p < size; p++) in[p] = (p == me ? at(k) : board.piece(p, k)) + begin;
    const bool gives = root != me, past = gives && board.past_caches(k);
    if (past && !takes) spare.resize(s.share * item);
    char *piece = board.piece(me, k) + begin, *result = takes  ? at(k) + begin
                                                        : past ? spare.data()
                                                               : piece;
    reduce(in, gives && !past && takes ? std::vector{result, piece} : std::vector{result}, n, r);
    if (past) board.bring(k, begin, result, n * item);
  };
  auto consume = [&](size_t k) {
    reduce_share(k);
    if (takes && k) take(k - 1);
  };
  pipeline(board, pieces, std::min(per, count) * item, idle, bring, consume);
  if (takes) take(pieces - 1);
}

// all_reduce, or reduce to a root.
void reduce_to(Board& board, uint64_t fingerprint, void* data, size_t count, cpu::Reduction r,
               int root, Idle& idle) {
  r.inputs = board.size();
  const size_t bytes = count * cpu::item_bytes(r.dtype);
  if (bytes > Board::kSmallBytes) idle.park();
  Call call = fingerprint;
  call.read_by_all = root == kEveryone;
  switch (board.open(call, data, bytes, idle)) {
    case Path::staged:
      if (root == kEveryone || root == board.rank())
        reduce(board.sources(), {static_cast<char*>(data)}, count, r);
      return;
    case Path::in_place:
      return reduce_in_place(board, count, r, root, idle);
    case Path::remote:  // never asked for here
    case Path::pipelined:
      return reduce_pipelined(board, static_cast<char*>(data), count, r, root, idle);
  }
}

void reduce_scatter_pipelined(Board& board, const char* in, char* out, const size_t* offsets,
                              const cpu::Reduction& r, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const size_t item = cpu::item_bytes(r.dtype);
  size_t longest = 0;
  for (int p = 0; p < size; p++) longest = std::max(longest, offsets[p + 1] - offsets[p]);
  const size_t per = std::min(longest, Board::kSegmentBytes / item / size);
  auto count = [&](int p, size_t k) {
    const size_t chunk = offsets[p + 1] - offsets[p];
    return std::min(per, chunk - std::min(chunk, k * per));
  };
  auto from = [&](int p, size_t k) { return in + (offsets[p] + k * per) * item; };
  auto bring = [&](size_t k) {
    for (int p = 0; p < size; p++)
      if (p != me && count(p, k)) board.bring(k, p * per * item, from(p, k), count(p, k) * item);
  };
  auto consume = [&](size_t k) {
    if (!count(me, k)) return;
    std::vector<char*> inputs(size), output{out + k * per * item};
    for (int p = 0; p < size; p++)
      inputs[p] = p == me ? const_cast<char*>(from(me, k)) : board.piece(p, k) + me * per * item;
    reduce(inputs, output, count(me, k), r);
  };
  pipeline(board, (longest + per - 1) / per, per * item * size, idle, bring, consume);
}

}  // namespace

void barrier(Board& board, uint64_t fingerprint, Idle& idle) {
  board.open(fingerprint, nullptr, 0, idle);
}

void all_reduce(Board& board, uint64_t fingerprint, void* data, size_t count, cpu::Reduction r,
                Idle& idle) {
  reduce_to(board, fingerprint, data, count, r, kEveryone, idle);
}

void reduce(Board& board, uint64_t fingerprint, void* data, size_t count, cpu::Reduction r,
            int root, Idle& idle) {
  reduce_to(board, fingerprint, data, count, r, root, idle);
}

void broadcast(Board& board, uint64_t fingerprint, void* data, size_t bytes, int root, Idle& idle) {
  const int me = board.rank(), size = board.size();
  const bool mine = me == root;
  if (bytes > Board::kSmallBytes) idle.park();
  Call call = fingerprint;
  call.target = data;
  const Path path = board.open(call, mine ? data : nullptr, bytes, idle);
  const CopyOut copy_out(bytes * size_t(size));
  char* to = static_cast<char*>(data);
  if (path != Path::pipelined) {
    const size_t own = own_part(bytes, size);
    if (!mine) copy_out(to, board.source(root), board.has_target(me) ? own : bytes);
    for (int p = 0; p < size && mine; p++)
      if (board.has_target(p)) copy_out(board.target(p) + own, to + own, bytes - own);
    if (path == Path::in_place) board.barrier(idle);
    return;
  }
  const size_t per = board.one_way_bytes(bytes);
  auto length = [&](size_t k) { return std::min(per, bytes - k * per); };
  auto bring = [&](size_t k) {
    if (mine) board.bring(k, 0, to + k * per, length(k));
  };
  auto consume = [&](size_t k) {
    if (!mine) copy_out(to + k * per, board.piece(root, k), length(k));
  };
  pipeline(board, (bytes + per - 1) / per, std::min(per, bytes), idle, bring, consume);
}

void all_gather(Board& board, uint64_t fingerprint, const void* in, void* out,
                const size_t* offsets, Idle& idle) {
  const int me = board.rank(), size = board.size();
  char* to = static_cast<char*>(out);
  auto bytes = [&](int p) { return offsets[p + 1] - offsets[p]; };
  if (offsets[size] > Board::kSmallBytes) idle.park();
  Call call = fingerprint;
  call.remote = true;
  const Path path = board.open(call, in, bytes(me), idle);
  const CopyOut copy_out(offsets[size] * size_t(1 + size));
  copy_out(to + offsets[me], static_cast<const char*>(in), bytes(me));
  if (path != Path::pipelined) {
    for (int p = 0; p < size; p++)
      if (p != me) board.take(p, 0, to + offsets[p], bytes(p), copy_out);
    if (path != Path::staged) board.barrier(idle);
    return;
  }
  size_t longest = 0;
  for (int p = 0; p < size; p++) longest = std::max(longest, bytes(p));
  const size_t per = Board::kSegmentBytes;
  auto length = [&](int p, size_t k) {
    return std::min(per, bytes(p) - std::min(bytes(p), k * per));
  };
  auto bring = [&](size_t k) {
    board.bring(k, 0, static_cast<const char*>(in) + k * per, length(me, k));
  };
  auto consume = [&](size_t k) {
    for (int p = 0; p < size; p++)
      if (p != me && length(p, k)) copy(to + offsets[p] + k * per, board.piece(p, k), length(p, k));
  };
  pipeline(board, (longest + per - 1) / per, std::min(per, longest), idle, bring, consume);
}

void reduce_scatter(Board& board, uint64_t fingerprint, const void* in, void* out,
                    const size_t* offsets, cpu::Reduction r, Idle& idle) {
  r.inputs = board.size();
  const int me = board.rank();
  const size_t item = cpu::item_bytes(r.dtype), bytes = offsets[board.size()] * item;
  if (bytes > Board::kSmallBytes) idle.park();
  const Path path = board.open(fingerprint, in, bytes, idle);
  char* to = static_cast<char*>(out);
  if (path == Path::pipelined)
    return reduce_scatter_pipelined(board, static_cast<const char*>(in), to, offsets, r, idle);
  reduce(board.sources(offsets[me] * item), {to}, offsets[me + 1] - offsets[me], r);
  if (path == Path::in_place) board.barrier(idle);
}

}  // namespace pycomm::shm
