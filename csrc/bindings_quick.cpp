// The short way of a collective: from the Python call straight to the board.
//
// It takes contiguous NumPy arrays and torch CPU tensors and the built-in operations, and returns
// false for everything else, also for everything that is wrong: then the long way in Python does
// the call, or says what is the matter. Both ways make the same fingerprint.
#include <pthread.h>

#include "bindings_arrays.h"
#include "bindings_recorded.h"
#include "fingerprint.h"
#include "shm/direct.h"

namespace pycomm {

bool in_forked_child = false;

namespace {

using shm::Board;

void count(Board& board, const Recorded& call, uint64_t busy_ns, uint64_t waited_ns) {
  Board::Count& count = board.counted(call.kind);
  count.operations++;
  count.bytes += call.bytes;
  count.busy_ns += busy_ns;
  count.waited_ns += waited_ns;
}

// Runs a collective and counts it. A failure is kept by the board, and the long way finds it there,
// and the operation still running in the flight recorder.
template <class Run>
bool run(Board& board, const Recorded& call, Run run) {
  const uint64_t start_ns = flight::now_ns(), waited_ns = board.waited_ns();
  if (board.flight) board.flight->collective(call.call(), start_ns);
  try {
    RecordedIdle idle(board.flight);
    run(idle);
  } catch (const shm::Failure&) {
    return false;
  } catch (...) {
    if (board.flight) board.flight->end(flight::State::failed, flight::now_ns());
    throw;
  }
  const uint64_t end_ns = flight::now_ns();
  if (board.flight) board.flight->end(flight::State::done, end_ns);
  count(board, call, end_ns - start_ns, board.waited_ns() - waited_ns);
  return true;
}

bool usable(const Board& board) { return board.quick && !in_forked_child; }

bool quick_barrier(Board& board) {
  if (!usable(board)) return false;
  constexpr uint64_t fingerprint = Fingerprint("barrier").call(5, 0, 0).add(0).value();
  return run(board, {Board::kBarrier, 0, 5},
             [&](auto& idle) { shm::barrier(board, fingerprint, idle); });
}

bool quick_all_reduce(Board& board, nb::handle x, nb::handle op) {
  Array a;
  if (!usable(board) || !array_of(x, true, a)) return false;
  const int code = op_of(op, a.dtype);
  if (code < 0) return false;
  const uint64_t f = Fingerprint("all_reduce").call(a.dtype, code, 0).add(a.count()).value();
  return run(board, {Board::kAllReduce, a.bytes, a.dtype, code}, [&](auto& idle) {
    shm::all_reduce(board, f, a.data, a.count(), {a.dtype, code}, idle);
  });
}

bool quick_broadcast(Board& board, nb::handle x, nb::handle root) {
  Array a;
  const long r = PyLong_Check(root.ptr()) ? PyLong_AsLong(root.ptr()) : -1;
  if (!usable(board) || r < 0 || r >= board.size() || !array_of(x, r != board.rank(), a))
    return false;
  const uint64_t f = Fingerprint("broadcast").call(a.dtype, 0, int(r)).add(a.count()).value();
  return run(board, {Board::kBroadcast, a.bytes, a.dtype, -1, int(r)},
             [&](auto& idle) { shm::broadcast(board, f, a.data, a.bytes, int(r), idle); });
}

// Offsets of equal chunks of `chunk`, and the fingerprint of as many elements a rank.
const std::vector<size_t>& equal_chunks(size_t chunk, int size) {
  static thread_local std::vector<size_t> offsets;
  offsets.resize(size + 1);
  for (int r = 0; r <= size; r++) offsets[r] = chunk * r;
  return offsets;
}

uint64_t of_equal_chunks(Fingerprint f, size_t count, int size) {
  for (int r = 0; r < size; r++) f.add(count);
  return f.value();
}

bool quick_all_gather(Board& board, nb::handle x, nb::handle out) {
  Array a, b;
  if (!usable(board) || !array_of(x, false, a) || !array_of(out, true, b)) return false;
  if (a.dtype != b.dtype || a.bytes * board.size() != b.bytes) return false;
  const uint64_t f =
      of_equal_chunks(Fingerprint("all_gather").call(a.dtype, 0, 0), a.count(), board.size());
  return run(board, {Board::kAllGather, b.bytes, a.dtype}, [&](auto& idle) {
    shm::all_gather(board, f, a.data, b.data, equal_chunks(a.bytes, board.size()).data(), idle);
  });
}

bool quick_reduce_scatter(Board& board, nb::handle x, nb::handle op, nb::handle out) {
  Array a, b;
  if (!usable(board) || !array_of(x, false, a) || !array_of(out, true, b)) return false;
  const int code = op_of(op, a.dtype);
  if (code < 0 || a.dtype != b.dtype || b.bytes * board.size() != a.bytes) return false;
  const uint64_t f = of_equal_chunks(Fingerprint("reduce_scatter").call(a.dtype, code, 0),
                                     b.count(), board.size());
  return run(board, {Board::kReduceScatter, a.bytes, a.dtype, code}, [&](auto& idle) {
    const auto& offsets = equal_chunks(b.count(), board.size());
    shm::reduce_scatter(board, f, a.data, b.data, offsets.data(), {a.dtype, code}, idle);
  });
}

nb::dict quick_counts(Board& board) {
  nb::dict counts;
  for (int k = 0; k < Board::kKinds; k++) {
    const Board::Count& c = board.counted(k);
    counts[kKindNames[k]] =
        nb::make_tuple(c.operations, c.bytes, double(c.busy_ns) * 1e-9, double(c.waited_ns) * 1e-9);
  }
  return counts;
}

}  // namespace

void bind_quick(nb::module_& m, nb::class_<Board>& board) {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
  m.def("fingerprint", [](const std::string& kind, int dtype, uint64_t op, int root,
                          const std::vector<uint64_t>& elements) {
    Fingerprint f = Fingerprint(kind).call(dtype, op, root);
    for (uint64_t count : elements) f.add(count);
    return f.value();
  });
  board.def_rw("quick", &Board::quick, "Whether the quick_… methods may be used now.")
      .def(
          "record", [](Board& b, flight::Flight& flight) { b.flight = &flight; }, "flight"_a,
          nb::keep_alive<1, 2>(), "Record what the quick_… methods do.")
      .def("quick_barrier", &quick_barrier)
      .def("quick_all_reduce", &quick_all_reduce)
      .def("quick_broadcast", &quick_broadcast)
      .def("quick_all_gather", &quick_all_gather)
      .def("quick_reduce_scatter", &quick_reduce_scatter)
      .def_prop_ro("quick_counts", &quick_counts,
                   "kind → (operations, bytes, busy seconds, idle seconds) done the quick way.");
}

}  // namespace pycomm
