// What the files of bindings share: the only ones that know Python objects.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>
#include <optional>

#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/reduce.h"
#include "flight.h"
#include "shm/board.h"
#include "shm/engine.h"

namespace pycomm {

namespace nb = nanobind;
using namespace nb::literals;

void bind_failures(nb::module_&);
void bind_board(nb::module_&);
void bind_waits(nb::module_&);
void bind_arrays(nb::module_&);
void bind_watchdog(nb::module_&);
void bind_quick(nb::module_&, nb::class_<shm::Board>&);
void bind_exchange(nb::module_&);
void bind_mailbox(nb::module_&);
void bind_port(nb::module_&);
void bind_quantize(nb::module_&);
void bind_update(nb::module_&);
void bind_dropout(nb::module_&);

extern bool in_forked_child;

void bind_flight(nb::module_&);

// File and line of the innermost Python frame outside the package; nothing if there is none.
flight::Text recorded_site();
void bind_engine(nb::module_&);

// Holds the interpreter lock for short operations and gives it up when one becomes long; then looks
// for signals such as Ctrl-C now and then.
class GilIdle : public shm::Idle {
 public:
  ~GilIdle() override { resume(); }
  bool has_lock() const { return !saved_; }
  void park() override {
    if (!saved_) saved_ = PyEval_SaveThread();
  }
  void poll() override {
    resume();
    if (Py_MakePendingCalls()) throw nb::python_error();  // signals, and what engines have to say
    park();
  }
  void late(int rank, int peer, double waited_s) override {
    resume();
    on_late(rank, peer, waited_s);
    park();
  }
  // Takes the lock back, if it was given up. Python ends a thread that wants the lock of an
  // interpreter that is going away, by unwinding its stack, which no destructor survives: such a
  // thread stays here until the process ends.
  void resume() {
    if (!saved_) return;
    try {
      PyEval_RestoreThread(std::exchange(saved_, nullptr));
    } catch (...) {
      while (true) ::pause();
    }
  }
  static inline nb::callable& on_late = *new nb::callable;  // (rank, peer, seconds); never freed

 private:
  PyThreadState* saved_ = nullptr;
};

// A collective with checked arguments, for now or for an engine; it keeps neither its board nor its
// memory.
struct Prepared {
  shm::Collective collective;
};

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// `op` is the code of an operation, or the address of a user's fold, which no code can be.
inline cpu::Reduction reduction(int dtype, uintptr_t op, double factor, int inputs) {
  const bool builtin = op < cpu::kBuiltinOps;
  if (dtype < 0 || dtype > 16 || (!builtin && op < 4096))
    throw std::invalid_argument("dtype or op code out of range");
  cpu::Reduction r{dtype, builtin ? int(op) : cpu::kBuiltinOps, factor, inputs,
                   builtin ? nullptr : reinterpret_cast<cpu::Fold>(op)};
  if (!cpu::loops(r).widen)
    throw std::invalid_argument("the operation does not exist on the dtype");
  return r;
}

inline const std::vector<size_t>& checked(const std::vector<size_t>& offsets, int size) {
  if (offsets.size() != size_t(size) + 1)
    throw std::invalid_argument("offsets need size + 1 entries");
  return offsets;
}

}  // namespace pycomm
