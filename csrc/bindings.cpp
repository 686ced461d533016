// The extension pycomm._native: checks arguments, then hands plain pointers on.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <utility>

#include "cpu/reduce.h"
#include "exit.h"
#include "shm/board.h"
#include "shm/direct.h"
#include "shm/slab.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace pycomm;

namespace {

// Holds the interpreter lock for short operations and gives it up when one becomes long; then looks
// for signals such as Ctrl-C now and then.
class GilIdle : public shm::Idle {
 public:
  ~GilIdle() override {
    if (saved_) PyEval_RestoreThread(saved_);
  }
  void park() override {
    if (!saved_) saved_ = PyEval_SaveThread();
  }
  void poll() override {
    if (saved_) PyEval_RestoreThread(std::exchange(saved_, nullptr));
    if (PyErr_CheckSignals()) throw nb::python_error();
    park();
  }

 private:
  PyThreadState* saved_ = nullptr;
};

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cpu::Reduction reduction(int dtype, int op, double factor, int inputs) {
  if (dtype < 0 || dtype > 16 || op < 0 || op > 8)
    throw std::invalid_argument("dtype or op code out of range");
  cpu::Reduction r{dtype, op, factor, inputs};
  if (!cpu::loops(r).widen)
    throw std::invalid_argument("the operation does not exist on the dtype");
  return r;
}

// The address of a contiguous buffer; nothing keeps the object alive but the caller.
uintptr_t address(nb::handle array) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(array.ptr(), &buffer, PyBUF_SIMPLE) != 0) {
    PyErr_Clear();  // types without a buffer format, such as bfloat16
    return nb::cast<uintptr_t>(array.attr("ctypes").attr("data"));
  }
  const auto result = reinterpret_cast<uintptr_t>(buffer.buf);
  PyBuffer_Release(&buffer);
  return result;
}

// Memory in a slab, as a writable buffer; goes back to the slab when the last array on it is gone.
struct SharedMemory {
  explicit SharedMemory(size_t bytes)
      : data(shm::Slabs::instance().allocate(bytes)), bytes(bytes) {}
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory() { shm::Slabs::instance().release(data); }
  void* data;
  size_t bytes;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* memory = nb::inst_ptr<SharedMemory>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, memory->data, Py_ssize_t(memory->bytes), 0, flags);
}

PyType_Slot shared_memory_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                                     {0, nullptr}};

std::vector<size_t> checked(const std::vector<size_t>& offsets, int size) {
  if (offsets.size() != size_t(size) + 1)
    throw std::invalid_argument("offsets need size + 1 entries");
  return offsets;
}

void bind_kernels(nb::module_& m) {
  m.def("address", &address, "array"_a);
  m.def("level", &cpu::level, "The instruction level in use: plain, avx2 or avx512.");
  m.def("use_level", &cpu::use_level, "name"_a, "Use another instruction level; for tests.");
  m.def("widen",
        [](uintptr_t x, uintptr_t partial, size_t count, int dtype, int op, double factor) {
          const auto r = reduction(dtype, op, factor, 1);
          nb::gil_scoped_release release;
          cpu::loops(r).widen(at<void>(x), at<void>(partial), count, r);
        });
  m.def("accumulate",
        [](uintptr_t partial, uintptr_t x, size_t count, int dtype, int op, double factor) {
          const auto r = reduction(dtype, op, factor, 1);
          nb::gil_scoped_release release;
          cpu::loops(r).accumulate(at<void>(partial), at<void>(x), count, r);
        });
  m.def("finish",
        [](uintptr_t partial, uintptr_t out, size_t count, int dtype, int op, int inputs) {
          const auto r = reduction(dtype, op, 1.0, inputs);
          nb::gil_scoped_release release;
          cpu::loops(r).finish(at<void>(partial), at<void>(out), count, r);
        });
  m.def("reduce", [](const std::vector<uintptr_t>& inputs, uintptr_t output, size_t count,
                     int dtype, int op, double factor) {
    const auto r = reduction(dtype, op, factor, int(inputs.size()));
    if (inputs.empty()) throw std::invalid_argument("a reduction needs an input");
    void* out = at<void>(output);
    nb::gil_scoped_release release;
    cpu::reduce(reinterpret_cast<const void* const*>(inputs.data()), &out, 1, count, r);
  });
}

void bind_memory(nb::module_& m) {
  nb::class_<SharedMemory>(m, "SharedMemory", nb::type_slots(shared_memory_slots))
      .def(nb::init<size_t>(), "nbytes"_a);
  m.def("is_symmetric",
        [](uintptr_t memory) { return shm::Slabs::instance().find(at<void>(memory)).serial != 0; });
  m.def("symmetric_bytes", [] { return shm::Slabs::instance().bytes_in_use(); });
}

void bind_board(nb::module_& m) {
  using shm::Board;
  nb::class_<Board>(m, "Board")
      .def_static(
          "create",
          [](int rank, int size, bool crowded, double timeout) {
            return new Board(shm::Segment::create(Board::bytes(size)), rank, size, crowded,
                             timeout);
          },
          nb::rv_policy::take_ownership)
      .def_static(
          "open",
          [](int pid, int fd, uint64_t nonce, int rank, int size, bool crowded, double timeout) {
            return new Board(shm::Segment::open(pid, fd, nonce), rank, size, crowded, timeout);
          },
          nb::rv_policy::take_ownership)
      .def_prop_ro("fd", [](Board& b) { return b.segment().fd(); })
      .def_prop_ro("nonce", [](Board& b) { return b.segment().nonce(); })
      .def_prop_ro("waited_s", [](Board& b) { return double(b.waited_ns()) * 1e-9; })
      .def("close_descriptor", &Board::close_descriptor)
      .def("depart", &Board::depart)
      .def("has_departed", &Board::has_departed, "rank"_a)
      .def("exchange_notes",
           [](Board& b, const std::string& mine) {
             GilIdle idle;
             return b.exchange_notes(mine, idle);
           })
      .def("barrier",
           [](Board& b, uint64_t fingerprint) {
             GilIdle idle;
             shm::barrier(b, fingerprint, idle);
           })
      .def("all_reduce",
           [](Board& b, uint64_t fingerprint, uintptr_t data, size_t count, int dtype, int op,
              double factor) {
             const auto r = reduction(dtype, op, factor, b.size());
             GilIdle idle;
             shm::all_reduce(b, fingerprint, at<void>(data), count, r, idle);
           })
      .def("broadcast",
           [](Board& b, uint64_t fingerprint, uintptr_t data, size_t bytes, int root) {
             if (root < 0 || root >= b.size()) throw std::invalid_argument("root out of range");
             GilIdle idle;
             shm::broadcast(b, fingerprint, at<void>(data), bytes, root, idle);
           })
      .def("all_gather",
           [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out,
              const std::vector<size_t>& offsets) {
             const auto o = checked(offsets, b.size());
             GilIdle idle;
             shm::all_gather(b, fingerprint, at<void>(in), at<void>(out), o.data(), idle);
           })
      .def("reduce_scatter",
           [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out,
              const std::vector<size_t>& offsets, int dtype, int op, double factor) {
             const auto o = checked(offsets, b.size());
             const auto r = reduction(dtype, op, factor, b.size());
             GilIdle idle;
             shm::reduce_scatter(b, fingerprint, at<void>(in), at<void>(out), o.data(), r, idle);
           });
}

// C++ failures as exceptions of this module, with the rank that they are about as the argument.
void bind_failures(nb::module_& m) {
  static PyObject* mismatch = PyErr_NewException("pycomm._native.Mismatch", nullptr, nullptr);
  static PyObject* stalled = PyErr_NewException("pycomm._native.Stalled", nullptr, nullptr);
  static PyObject* departed = PyErr_NewException("pycomm._native.Departed", nullptr, nullptr);
  m.attr("Mismatch") = nb::handle(mismatch);
  m.attr("Stalled") = nb::handle(stalled);
  m.attr("Departed") = nb::handle(departed);
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const shm::Mismatch&) {
      PyErr_SetNone(mismatch);
    } catch (const shm::Stalled& e) {
      PyErr_SetObject(stalled, nb::int_(e.rank).ptr());
    } catch (const shm::Departed& e) {
      PyErr_SetObject(departed, nb::int_(e.rank).ptr());
    }
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Moves and reduces bytes: kernels for the CPU, and collectives over shared memory.";
  nb::set_leak_warnings(false);
  bind_failures(m);
  bind_kernels(m);
  bind_memory(m);
  bind_board(m);
  m.def("finalize_on_success",
        [](uintptr_t function) { finalize_on_success(reinterpret_cast<int (*)()>(function)); });
}
