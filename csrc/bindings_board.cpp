// The board of a communicator and its collectives, for Python.
#include "bindings.h"
#include "shm/direct.h"
#include "shm/mailbox.h"

namespace pycomm {

void bind_board(nb::module_& m) {
  using shm::Board;
  m.def("call_when_late", [](nb::callable function) { GilIdle::on_late = function; });
  nb::class_<Prepared>(m, "Prepared").def("run", [](const Prepared& p) {
    GilIdle idle;
    p.collective(idle);
  });
  nb::class_<Board> board(m, "Board");
  board
      .def_static(
          "create",
          [](int rank, int size, bool crowded, double timeout, const std::vector<int>& sockets) {
            return new Board(shm::Segment::create(Board::bytes(size)), rank, size, crowded, timeout,
                             shm::groups_of(size, crowded, sockets));
          },
          nb::rv_policy::take_ownership)
      .def_static(
          "open",
          [](int pid, int fd, uint64_t nonce, int rank, int size, bool crowded, double timeout,
             const std::vector<int>& sockets) {
            return new Board(shm::Segment::open(pid, fd, nonce), rank, size, crowded, timeout,
                             shm::groups_of(size, crowded, sockets));
          },
          nb::rv_policy::take_ownership)
      .def_prop_ro("fd", [](Board& b) { return b.segment().fd(); })
      .def_prop_ro("nonce", [](Board& b) { return b.segment().nonce(); })
      .def_prop_ro("waited_s", [](Board& b) { return double(b.waited_ns()) * 1e-9; })
      .def_prop_rw(
          "peer_reads", [](Board& b) { return int(b.peer_reads); },
          [](Board& b, int when) { b.peer_reads = shm::PeerReads(when); },
          "When to read ordinary memory of others directly: 0 never, 1 in huge pages, 2 always.")
      .def_ro("peer_reads_done", &Board::peer_reads_done)
      .def_prop_rw(
          "past_caches", [](Board& b) { return int(b.staging.way); },
          [](Board& b, int when) { b.staging.way = shm::PastCaches(when); },
          "When pieces are staged past the caches: never, where it is faster, always.")
      .def("close_descriptor", &Board::close_descriptor)
      .def("watch", &Board::watch, "waits"_a, "processes"_a, nb::keep_alive<1, 2>())
      .def("serve", &Board::serve, "mailbox"_a, nb::keep_alive<1, 2>())
      .def("heed", &Board::heed, "watchdog"_a, "members"_a, nb::keep_alive<1, 2>())
      .def("depart", &Board::depart)
      .def("has_departed", &Board::has_departed, "rank"_a)
      .def("exchange_notes",
           [](Board& b, const std::string& mine) {
             GilIdle idle;
             return b.exchange_notes(mine, idle);
           })
      .def("barrier",
           [](Board& b, uint64_t fingerprint) {
             return Prepared{[=, &b](shm::Idle& idle) { shm::barrier(b, fingerprint, idle); }};
           })
      .def("all_reduce",
           [](Board& b, uint64_t fingerprint, uintptr_t data, size_t count, int dtype, uintptr_t op,
              double factor) {
             const auto r = reduction(dtype, op, factor, b.size());
             return Prepared{[=, &b](shm::Idle& idle) {
               shm::all_reduce(b, fingerprint, at<void>(data), count, r, idle);
             }};
           })
      .def("broadcast",
           [](Board& b, uint64_t fingerprint, uintptr_t data, size_t bytes, int root) {
             if (root < 0 || root >= b.size()) throw std::invalid_argument("root out of range");
             return Prepared{[=, &b](shm::Idle& idle) {
               shm::broadcast(b, fingerprint, at<void>(data), bytes, root, idle);
             }};
           })
      .def("all_gather",
           [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out,
              const std::vector<size_t>& offsets) {
             return Prepared{[=, &b, o = checked(offsets, b.size())](shm::Idle& idle) {
               shm::all_gather(b, fingerprint, at<void>(in), at<void>(out), o.data(), idle);
             }};
           })
      .def("reduce_scatter",
           [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out,
              const std::vector<size_t>& offsets, int dtype, uintptr_t op, double factor) {
             const auto r = reduction(dtype, op, factor, b.size());
             return Prepared{[=, &b, o = checked(offsets, b.size())](shm::Idle& idle) {
               shm::reduce_scatter(b, fingerprint, at<void>(in), at<void>(out), o.data(), r, idle);
             }};
           });
  bind_quick(m, board);
}

void bind_waits(nb::module_& m) {
  using shm::Waits;
  nb::class_<Waits>(m, "Waits")
      .def_static(
          "create",
          [](int process, int processes) {
            return new Waits(shm::Segment::create(Waits::bytes(processes)), process, processes);
          },
          nb::rv_policy::take_ownership)
      .def_static(
          "open",
          [](int pid, int fd, uint64_t nonce, int process, int processes) {
            return new Waits(shm::Segment::open(pid, fd, nonce), process, processes);
          },
          nb::rv_policy::take_ownership)
      .def_prop_ro("fd", [](Waits& w) { return w.segment().fd(); })
      .def_prop_ro("nonce", [](Waits& w) { return w.segment().nonce(); })
      .def("close_descriptor", &Waits::close_descriptor)
      .def("begin", &Waits::begin)
      .def("look", &Waits::look, "process"_a)
      .def("end", &Waits::end)
      .def("asynchronous", &Waits::asynchronous, "more"_a)
      .def_static("leave_out_this_thread", &Waits::leave_out_this_thread);
}

void bind_watchdog(nb::module_& m) {
  using shm::Watchdog;
  nb::class_<Watchdog>(m, "Watchdog")
      .def_static("create",
                  [](int process, int processes, const std::string& host) {
                    return Watchdog::start(shm::Segment::create(Watchdog::bytes(processes)),
                                           process, processes, host);
                  })
      .def_static(
          "open",
          [](int pid, int fd, uint64_t nonce, int process, int processes, const std::string& host) {
            return Watchdog::start(shm::Segment::open(pid, fd, nonce), process, processes, host);
          })
      .def_prop_ro("fd", [](Watchdog& w) { return w.segment().fd(); })
      .def_prop_ro("nonce", [](Watchdog& w) { return w.segment().nonce(); })
      .def("close_descriptor", &Watchdog::close_descriptor)
      .def("watch", &Watchdog::watch)
      .def("mark", &Watchdog::mark, "process"_a)
      .def("hush", &Watchdog::hush)
      .def("deaths", &Watchdog::deaths)
      .def("dead", &Watchdog::dead)
      .def("fate", &Watchdog::fate, "process"_a);
}

// C++ failures as exceptions of this module, with the rank that they are about as the argument.
void bind_failures(nb::module_& m) {
  static PyObject* mismatch = PyErr_NewException("pycomm._native.Mismatch", nullptr, nullptr);
  static PyObject* stalled = PyErr_NewException("pycomm._native.Stalled", nullptr, nullptr);
  static PyObject* deadlock = PyErr_NewException("pycomm._native.Deadlock", nullptr, nullptr);
  static PyObject* interrupted = PyErr_NewException("pycomm._native.Interrupted", nullptr, nullptr);
  static PyObject* departed = PyErr_NewException("pycomm._native.Departed", nullptr, nullptr);
  static PyObject* unreadable = PyErr_NewException("pycomm._native.Unreadable", nullptr, nullptr);
  static PyObject* unreachable = PyErr_NewException("pycomm._native.Unreachable", nullptr, nullptr);
  m.attr("Unreadable") = nb::handle(unreadable);
  m.attr("Unreachable") = nb::handle(unreachable);
  static PyObject* died = PyErr_NewException("pycomm._native.Died", nullptr, nullptr);
  m.attr("Mismatch") = nb::handle(mismatch);
  m.attr("Stalled") = nb::handle(stalled);
  m.attr("Deadlock") = nb::handle(deadlock);
  m.attr("Interrupted") = nb::handle(interrupted);
  m.attr("Departed") = nb::handle(departed);
  m.attr("Died") = nb::handle(died);
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const shm::Mismatch&) {
      PyErr_SetNone(mismatch);
    } catch (const shm::Deadlock& e) {
      PyErr_SetObject(deadlock, nb::cast(e.cycle).ptr());
    } catch (const shm::Died&) {
      PyErr_SetNone(died);
    } catch (const shm::Unreachable&) {
      PyErr_SetNone(unreachable);
    } catch (const shm::Interrupted&) {
      PyErr_SetNone(interrupted);
    } catch (const shm::Stalled& e) {
      PyErr_SetObject(stalled, nb::int_(e.rank).ptr());
    } catch (const shm::Unreadable& e) {
      PyErr_SetObject(unreadable, nb::make_tuple(e.rank, e.error).ptr());
    } catch (const shm::Departed& e) {
      PyErr_SetObject(departed, nb::int_(e.rank).ptr());
    }
  });
}

}  // namespace pycomm
