// Asynchronous collectives on a board, for Python.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include "python_engine.h"

namespace pycomm {
namespace {

using shm::Operation;

struct Warning {
  int rank, peer;
  double waited_s;
};

int warn(void* pointer) {
  const std::unique_ptr<Warning> warning(static_cast<Warning*>(pointer));
  try {
    GilIdle::on_late(warning->rank, warning->peer, warning->waited_s);
  } catch (nb::python_error& error) {
    error.discard_as_unraisable("pycomm warns of a late rank");
  }
  return 0;
}

// The engine's thread does not wait for the interpreter: the main thread warns, when it gets to it.
void warn_later(int rank, int peer, double waited_s) {
  auto warning = std::make_unique<Warning>(Warning{rank, peer, waited_s});
  if (Py_AddPendingCall(warn, warning.get()) == 0) static_cast<void>(warning.release());
}

bool wait(PythonEngine& e, const Operation& operation, std::optional<double> timeout_s) {
  bool finished;
  {
    GilIdle idle;
    finished = e.engine.wait(operation, timeout_s, idle);
  }
  e.let_go();
  return finished;
}

bool drain(PythonEngine& e) {
  if (!e.engine.busy()) return false;
  {
    GilIdle idle;
    e.engine.drain(idle);
  }
  e.let_go();
  return true;
}

}  // namespace

PythonEngine::PythonEngine(shm::Board& board, std::vector<int> cores)
    : board(board), engine(board, std::move(cores), &warn_later) {}

std::shared_ptr<Operation> PythonEngine::submit(shm::Collective collective, std::string kind,
                                                std::string note, nb::handle keep,
                                                uint64_t record) {
  let_go();
  auto operation = std::make_shared<Operation>();
  operation->kind = std::move(kind);
  operation->note = std::move(note);
  operation->collective = std::move(collective);
  operation->record = record;
  kept.emplace_back(operation, nb::borrow(keep));
  engine.submit(operation);
  return operation;
}

// What is dropped may run Python code that comes back here.
void PythonEngine::let_go() {
  while (!kept.empty() && kept.front().first->finished()) {
    const nb::object dropped = std::move(kept.front().second);
    kept.pop_front();
  }
}

void bind_engine(nb::module_& m) {
  nb::class_<Operation>(m, "Operation")
      .def_prop_ro("finished", &Operation::finished)
      .def_prop_ro("failed", [](const Operation& o) { return o.finished() && o.error != nullptr; })
      .def_ro("kind", &Operation::kind)
      .def_ro("notes", &Operation::notes)
      .def("check", [](const Operation& o) {
        if (o.finished() && o.error) std::rethrow_exception(o.error);
      });
  nb::class_<PythonEngine>(m, "Engine")
      .def(nb::init<shm::Board&, std::vector<int>>(), "board"_a, "cores"_a, nb::keep_alive<1, 2>())
      .def("submit",
           [](PythonEngine& e, const Prepared& p, std::string kind, std::string note,
              nb::handle keep, uint64_t record) {
             return e.submit(p.collective, std::move(kind), std::move(note), keep, record);
           })
      .def("wait", &wait, "operation"_a, "timeout_s"_a.none())
      .def("drain", &drain, "Waits for all operations; returns whether there were any.")
      .def_prop_ro("failed", [](const PythonEngine& e) { return e.engine.failed(); })
      .def("stop", [](PythonEngine& e) {
        e.engine.stop();
        e.let_go();
      });
}

}  // namespace pycomm
