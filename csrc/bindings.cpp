// The extension pycomm._native: checks arguments, then hands plain pointers on.
#include <sys/syscall.h>
#include <unistd.h>

#include <nanobind/stl/tuple.h>

#include "bindings.h"
#include "call_site.h"
#include "digest.h"
#include "exit.h"
#include "shm/slab.h"

namespace pycomm {
namespace {

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

// Memory in a slab of a node-mate: valid as long as the owner keeps its array.
struct PeerMemory {
  PeerMemory(int pid, uint32_t serial, int fd, uint64_t nonce, uint64_t offset, size_t bytes)
      : slab(shm::map_slab(pid, {serial, fd, nonce, offset})),
        data(slab->data() + offset),
        bytes(bytes) {
    if (offset + bytes > slab->bytes()) throw std::invalid_argument("beyond the slab's end");
  }
  std::shared_ptr<shm::Segment> slab;
  void* data;
  size_t bytes;
};

template <class Memory>
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* memory = nb::inst_ptr<Memory>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, memory->data, Py_ssize_t(memory->bytes), 0, flags);
}

template <class Memory>
PyType_Slot buffer_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer<Memory>)},
                              {0, nullptr}};

void bind_kernels(nb::module_& m) {
  m.def("address", &address, "array"_a);
  m.def(
      "digest",
      [](uintptr_t data, size_t bytes) {
        nb::gil_scoped_release release;
        return digest(at<const char>(data), bytes);
      },
      "address"_a, "nbytes"_a, "64 bits that differ for different memory.");
  m.def("level", &cpu::level, "The instruction level in use: plain, avx2 or avx512.");
  m.def("use_level", &cpu::use_level, "name"_a, "Use another instruction level; for tests.");
  m.def("widen",
        [](uintptr_t x, uintptr_t partial, size_t count, int dtype, uintptr_t op, double factor) {
          const auto r = reduction(dtype, op, factor, 1);
          nb::gil_scoped_release release;
          cpu::loops(r).widen(at<void>(x), at<void>(partial), count, r);
        });
  m.def("accumulate",
        [](uintptr_t partial, uintptr_t x, size_t count, int dtype, uintptr_t op, double factor) {
          const auto r = reduction(dtype, op, factor, 1);
          nb::gil_scoped_release release;
          cpu::accumulate(at<void>(partial), at<void>(x), count, r);
        });
  m.def("finish",
        [](uintptr_t partial, uintptr_t out, size_t count, int dtype, uintptr_t op, int inputs) {
          const auto r = reduction(dtype, op, 1.0, inputs);
          nb::gil_scoped_release release;
          cpu::loops(r).finish(at<void>(partial), at<void>(out), count, r);
        });
  m.def("reduce", [](const std::vector<uintptr_t>& inputs, uintptr_t output, size_t count,
                     int dtype, uintptr_t op, double factor) {
    const auto r = reduction(dtype, op, factor, int(inputs.size()));
    if (inputs.empty()) throw std::invalid_argument("a reduction needs an input");
    void* out = at<void>(output);
    nb::gil_scoped_release release;
    cpu::reduce(reinterpret_cast<const void* const*>(inputs.data()), &out, 1, count, r);
  });
}

void bind_memory(nb::module_& m) {
  nb::class_<SharedMemory>(m, "SharedMemory", nb::type_slots(buffer_slots<SharedMemory>))
      .def(nb::init<size_t>(), "nbytes"_a);
  nb::class_<PeerMemory>(m, "PeerMemory", nb::type_slots(buffer_slots<PeerMemory>))
      .def(nb::init<int, uint32_t, int, uint64_t, uint64_t, size_t>(), "pid"_a, "serial"_a, "fd"_a,
           "nonce"_a, "offset"_a, "nbytes"_a);
  m.def(
      "place",
      [](uintptr_t memory) {
        const shm::Place p = shm::Slabs::instance().find(at<void>(memory));
        return std::make_tuple(p.serial, p.fd, p.nonce, p.offset);
      },
      "address"_a,
      "Where a symmetric buffer lies, for PeerMemory elsewhere; serial 0: it is none.");
  m.def("is_symmetric",
        [](uintptr_t memory) { return shm::Slabs::instance().find(at<void>(memory)).serial != 0; });
  m.def("symmetric_bytes", [] { return shm::Slabs::instance().bytes_in_use(); });
}

}  // namespace
}  // namespace pycomm

NB_MODULE(_native, m) {
  using namespace pycomm;
  m.doc() = "Moves and reduces bytes: kernels for the CPU, and collectives over shared memory.";
  nb::set_leak_warnings(false);
  bind_failures(m);
  bind_kernels(m);
  bind_quantize(m);
  bind_update(m);
  bind_dropout(m);
  bind_memory(m);
  bind_arrays(m);
  bind_waits(m);
  bind_mailbox(m);
  bind_port(m);
  bind_flight(m);
  bind_watchdog(m);
  bind_board(m);
  bind_exchange(m);
  m.def(
      "signal_main_thread",
      [](int pid, int signal) {
        if (syscall(SYS_tgkill, pid, pid, signal) == 0) return;
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
      },
      "pid"_a, "signal"_a,
      "Signal a process by its main thread alone: a handler on another would see its frames move.");
  bind_engine(m);
  m.def("know_package", &know_package, "folder"_a);
  m.def("call_site", &call_site);
  m.def("finalize_on_success",
        [](uintptr_t function) { finalize_on_success(reinterpret_cast<int (*)()>(function)); });
  m.def("never_finalize", &never_finalize);
  m.def("abort_by", [](uintptr_t function, uintptr_t communicator) {
    abort_by(reinterpret_cast<int (*)(void*, int)>(function),
             reinterpret_cast<void*>(communicator));
  });
  m.def("abort_on_failure", &abort_on_failure);
  m.def("abort_after", &abort_after, "seconds"_a, "code"_a, "why"_a);
}
