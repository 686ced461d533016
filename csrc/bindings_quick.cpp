// The short way of a collective: from the Python call straight to the board.
//
// It takes contiguous NumPy arrays and torch CPU tensors and the built-in operations, and returns
// false for everything else, also for everything that is wrong: then the long way in Python does
// the call, or says what is the matter. Both ways make the same fingerprint.
#include <pthread.h>

#include <nanobind/stl/shared_ptr.h>

#include <algorithm>

#include "bindings_arrays.h"
#include "bindings_recorded.h"
#include "call_site.h"
#include "fingerprint.h"
#include "python_engine.h"
#include "shm/direct.h"
#include "shm/exchange.h"

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

bool usable(const Board& board) { return board.quick && !board.engaged() && !in_forked_child; }

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

// A root by its number, or −1 if it is none.
int root_of(nb::handle root, const Board& board) {
  const long r = PyLong_CheckExact(root.ptr()) ? PyLong_AsLong(root.ptr()) : -1;
  if (r == -1) PyErr_Clear();
  return r < board.size() ? int(std::max(r, -1L)) : -1;
}

// The number of an asynchronous call's record.
uint64_t begin(Board& board, const Recorded& recorded) {
  if (!board.flight) return 0;
  flight::Call call = recorded.call();
  call.site = recorded_site();
  return board.flight->begin(call, flight::now_ns());
}

// The call in words, as guard.describe() has it.
std::string described(const Array& a, int code) {
  std::string text = "all_reduce(op='";
  text.append(kOpNames[code]).append("', ").append(kDtypeNames[a.dtype]);
  text.append(", elements=").append(std::to_string(a.count()));
  return text.append(", algorithm='direct') at ").append(call_site());
}

// Null where the long way has to do it.
std::shared_ptr<shm::Operation> quick_start_all_reduce(PythonEngine& engine, nb::handle x,
                                                       nb::handle op) {
  Array a;
  if (!engine.board.quick || in_forked_child || !array_of(x, true, a)) return nullptr;
  const int code = op_of(op, a.dtype);
  if (code < 0) return nullptr;
  const uint64_t f = Fingerprint("all_reduce").call(a.dtype, code, 0).add(a.count()).value();
  Board::Count& count = engine.board.counted(Board::kAllReduce);
  count.operations++, count.bytes += a.bytes;
  auto collective = [f, data = a.data, count = a.count(), r = cpu::Reduction{a.dtype, code},
                     &board = engine.board](shm::Idle& idle) {
    shm::all_reduce(board, f, data, count, r, idle);
  };
  const Recorded call{Board::kAllReduce, a.bytes, a.dtype, code};
  return engine.submit(collective, "all_reduce", described(a, code), x, begin(engine.board, call));
}

bool quick_broadcast(Board& board, nb::handle x, nb::handle root) {
  Array a;
  const int r = root_of(root, board);
  if (!usable(board) || r < 0 || !array_of(x, r != board.rank(), a)) return false;
  const uint64_t f = Fingerprint("broadcast").call(a.dtype, 0, r).add(a.count()).value();
  return run(board, {Board::kBroadcast, a.bytes, a.dtype, -1, r},
             [&](auto& idle) { shm::broadcast(board, f, a.data, a.bytes, r, idle); });
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

// Whether `whole` has one `part` for each rank.
bool is_each(const Array& whole, const Array& part, int size) {
  return whole.dtype == part.dtype && whole.dimensions == part.dimensions + 1 &&
         whole.lengths[0] == size_t(size) &&
         std::equal(part.lengths, part.lengths + part.dimensions, whole.lengths + 1);
}

bool quick_all_gather(Board& board, nb::handle x, nb::handle out) {
  Array a, b;
  if (!usable(board) || !shaped_array_of(x, false, a) || !shaped_array_of(out, true, b))
    return false;
  if (!is_each(b, a, board.size())) return false;
  const uint64_t f =
      of_equal_chunks(Fingerprint("all_gather").call(a.dtype, 0, 0), a.count(), board.size());
  return run(board, {Board::kAllGather, b.bytes, a.dtype}, [&](auto& idle) {
    shm::all_gather(board, f, a.data, b.data, equal_chunks(a.bytes, board.size()).data(), idle);
  });
}

bool quick_reduce_scatter(Board& board, nb::handle x, nb::handle op, nb::handle out) {
  Array a, b;
  if (!usable(board) || !shaped_array_of(x, false, a) || !shaped_array_of(out, true, b))
    return false;
  const int code = op_of(op, a.dtype);
  const bool alike = a.dtype == b.dtype && a.dimensions == b.dimensions && a.dimensions &&
                     a.lengths[0] == b.lengths[0] * board.size() &&
                     std::equal(a.lengths + 1, a.lengths + a.dimensions, b.lengths + 1);
  if (code < 0 || !alike) return false;
  const uint64_t f = of_equal_chunks(Fingerprint("reduce_scatter").call(a.dtype, code, 0),
                                     b.count(), board.size());
  return run(board, {Board::kReduceScatter, a.bytes, a.dtype, code}, [&](auto& idle) {
    const auto& offsets = equal_chunks(b.count(), board.size());
    shm::reduce_scatter(board, f, a.data, b.data, offsets.data(), {a.dtype, code}, idle);
  });
}

bool quick_reduce(Board& board, nb::handle x, nb::handle root, nb::handle op) {
  Array a;
  const int r = root_of(root, board);
  if (!usable(board) || r < 0 || !array_of(x, r == board.rank(), a)) return false;
  const int code = op_of(op, a.dtype);
  if (code < 0) return false;
  const uint64_t f = Fingerprint("reduce").call(a.dtype, code, r).add(a.count()).value();
  return run(board, {Board::kReduce, a.bytes, a.dtype, code, r}, [&](auto& idle) {
    shm::reduce(board, f, a.data, a.count(), {a.dtype, code}, r, idle);
  });
}

uint64_t of_lengths(Fingerprint f, const Array& array, int from) {
  for (int d = from; d < array.dimensions; d++) f.add(array.lengths[d]);
  return f.value();
}

bool quick_gather(Board& board, nb::handle x, nb::handle root, nb::handle out) {
  Array a, b{};
  const int r = root_of(root, board), size = board.size();
  if (!usable(board) || r < 0 || !shaped_array_of(x, false, a)) return false;
  if (r == board.rank() && (!shaped_array_of(out, true, b) || !is_each(b, a, size))) return false;
  const uint64_t f = of_lengths(Fingerprint("gather").call(a.dtype, 0, r), a, 0);
  return run(board, {Board::kGather, a.bytes * size, a.dtype, -1, r},
             [&](auto& idle) { shm::gather(board, f, a.data, b.data, a.bytes, r, idle); });
}

bool quick_scatter(Board& board, nb::handle x, nb::handle root, nb::handle out) {
  Array a{}, b;
  const int r = root_of(root, board), size = board.size();
  if (!usable(board) || r < 0 || !shaped_array_of(out, true, b)) return false;
  if (r == board.rank() && (!shaped_array_of(x, false, a) || !is_each(a, b, size))) return false;
  int64_t words[3 + Array::kMostDimensions] = {b.dtype, a.tensor, b.dimensions};
  std::copy_n(b.lengths, b.dimensions, words + 3);
  shm::Call call = Fingerprint("scatter").call(0, 0, r).value();
  call.detail = of_lengths(Fingerprint("chunk").call(b.dtype, 0, 0), b, 0);
  if (r == board.rank()) call.header = {words, 3 + size_t(b.dimensions)};
  return run(board, {Board::kScatter, b.bytes * size, b.dtype, -1, r}, [&](auto& idle) {
    shm::scatter(board, call, a.data, {b.data, b.bytes}, nullptr, r, idle);
  });
}

// One chunk for every rank and one from every rank, all of the same length.
bool quick_all_to_all(Board& board, nb::handle x, nb::handle out) {
  Array a, b;
  const int me = board.rank(), size = board.size();
  if (!usable(board) || !shaped_array_of(x, false, a) || !shaped_array_of(out, true, b))
    return false;
  const bool alike = a.dtype == b.dtype && a.dimensions == b.dimensions && a.dimensions &&
                     std::equal(a.lengths, a.lengths + a.dimensions, b.lengths);
  const bool apart = a.data + a.bytes <= b.data || b.data + b.bytes <= a.data;
  if (!alike || !apart || a.lengths[0] != size_t(size)) return false;
  const uint64_t f = of_lengths(Fingerprint("all_to_all").call(a.dtype, 0, 0), a, 1);
  const size_t chunk = a.bytes / size;
  return run(board, {Board::kAllToAll, a.bytes, a.dtype}, [&](auto& idle) {
    static thread_local std::vector<size_t> starts;
    starts.assign(size, chunk * me);
    starts[0] = chunk * std::max(0, me - 1);
    const size_t* offsets = equal_chunks(chunk, size).data();
    shm::all_to_all(board, f, a.data, b.data,
                    {offsets, offsets, starts.data(), size > 1 ? chunk : 0}, idle);
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
  const auto any = nb::arg().none();
  m.def("start_all_reduce", &quick_start_all_reduce,
        "Submit to an engine; None where the long way has to.");
  board.def_rw("quick", &Board::quick, "Whether the quick_… methods may be used now.")
      .def(
          "record", [](Board& b, flight::Flight& flight) { b.flight = &flight; }, "flight"_a,
          nb::keep_alive<1, 2>(), "Record what the quick_… methods do.")
      .def("quick_barrier", &quick_barrier)
      .def("quick_all_reduce", &quick_all_reduce, any, any)
      .def("quick_broadcast", &quick_broadcast, any, any)
      .def("quick_all_gather", &quick_all_gather, any, any)
      .def("quick_reduce_scatter", &quick_reduce_scatter, any, any, any)
      .def("quick_reduce", &quick_reduce, any, any, any)
      .def("quick_gather", &quick_gather, any, any, any)
      .def("quick_scatter", &quick_scatter, any, any, any)
      .def("quick_all_to_all", &quick_all_to_all, any, any)
      .def_prop_ro("quick_counts", &quick_counts,
                   "kind → (operations, bytes, busy seconds, idle seconds) done the quick way.");
}

}  // namespace pycomm
