// The short way of a collective: from the Python call straight to the board.
//
// It takes contiguous NumPy arrays and torch CPU tensors and the built-in operations, and returns
// false for everything else, also for everything that is wrong: then the long way in Python does
// the call, or says what is the matter. Both ways make the same fingerprint.
#include <pthread.h>

#include <chrono>

#include <nanobind/stl/shared_ptr.h>

#include "bindings.h"
#include "call_site.h"
#include "fingerprint.h"
#include "python_engine.h"
#include "shm/direct.h"

namespace pycomm {
namespace {

using shm::Board;

struct Array {
  char* data;
  size_t bytes;
  int dtype;
  size_t count() const { return bytes / cpu::item_bytes(dtype); }
};

// The Python types that are known, and what was interned for them. Never freed.
struct Known {
  PyObject* ndarray = nullptr;
  PyObject* tensor = nullptr;
  std::vector<PyObject*> tensor_dtypes;  // by code; null where torch has none
  PyObject* ops[9] = {};                 // interned names, by code
  PyObject *data_ptr, *numel, *dtype, *is_contiguous, *is_cpu, *requires_grad;
};
Known known;
constexpr const char* kOps[] = {"sum", "avg", "prod", "min", "max", "band", "bor", "bxor"};
bool in_forked_child = false;

// Typestrings of the buffer protocol by dtype code; NumPy calls int64 'l' and long long 'q'.
int dtype_of(const char* format) {
  if (format[0] == 'Z') return format[1] == 'f' ? 15 : format[1] == 'd' ? 16 : -1;
  if (format[1] != 0) return -1;
  switch (format[0]) {
    case '?':
      return 0;
    case 'b':
      return 1;
    case 'h':
      return 2;
    case 'i':
      return 3;
    case 'l':
    case 'q':
      return 4;
    case 'B':
      return 5;
    case 'H':
      return 6;
    case 'I':
      return 7;
    case 'L':
    case 'Q':
      return 8;
    case 'e':
      return 9;
    case 'f':
      return 11;
    case 'd':
      return 12;
    default:
      return -1;
  }
}

bool numpy_array(PyObject* x, bool result, Array& array) {
  Py_buffer buffer;
  const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (result ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(x, &buffer, flags) != 0) {
    PyErr_Clear();
    return false;
  }
  array = {static_cast<char*>(buffer.buf), size_t(buffer.len), dtype_of(buffer.format)};
  PyBuffer_Release(&buffer);
  return array.dtype >= 0;
}

PyObject* call(PyObject* x, PyObject* method) {
  return PyObject_VectorcallMethod(method, &x, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

// Whether a Python expression is true; an error counts as false.
bool holds(PyObject* owned) {
  Py_XDECREF(owned);
  return owned == Py_True;
}

bool torch_tensor(PyObject* x, bool result, Array& array) {
  if (!holds(PyObject_GetAttr(x, known.is_cpu)) || !holds(call(x, known.is_contiguous)))
    return false;
  if (result && holds(PyObject_GetAttr(x, known.requires_grad))) return false;
  nb::object dtype = nb::steal(PyObject_GetAttr(x, known.dtype));
  for (size_t code = 0; code < known.tensor_dtypes.size(); code++)
    if (known.tensor_dtypes[code] == dtype.ptr()) {
      nb::object address = nb::steal(call(x, known.data_ptr)),
                 count = nb::steal(call(x, known.numel));
      if (!address.is_valid() || !count.is_valid()) return false;
      array.data = static_cast<char*>(PyLong_AsVoidPtr(address.ptr()));
      array.dtype = int(code);
      array.bytes = PyLong_AsSize_t(count.ptr()) * cpu::item_bytes(array.dtype);
      return true;
    }
  return false;
}

bool array_of(nb::handle x, bool result, Array& array) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(x.ptr()));
  bool found = type == known.ndarray  ? numpy_array(x.ptr(), result, array)
               : type == known.tensor ? torch_tensor(x.ptr(), result, array)
                                      : false;
  if (!found) PyErr_Clear();
  return found;
}

// The code of a built-in operation, if it exists on the dtype; -1 otherwise.
int op_of(nb::handle op, int dtype) {
  for (int code = 0; code < 8; code++)
    if (op.ptr() == known.ops[code]) return cpu::loops({dtype, code}).widen ? code : -1;
  return -1;
}

// Runs a collective and counts it. A failure is kept by the board, and the long way finds it there.
template <class Run>
bool run(Board& board, size_t kind, size_t bytes, Run run) {
  const auto start = std::chrono::steady_clock::now();
  const uint64_t waited_ns = board.waited_ns();
  try {
    GilIdle idle;
    run(idle);
  } catch (const shm::Failure&) {
    return false;
  }
  Board::Count& count = board.counted(kind);
  count.operations++;
  count.bytes += bytes;
  count.busy_ns +=
      uint64_t(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
  count.waited_ns += board.waited_ns() - waited_ns;
  return true;
}

bool usable(const Board& board) { return board.quick && !board.engaged() && !in_forked_child; }

bool quick_barrier(Board& board) {
  if (!usable(board)) return false;
  constexpr uint64_t fingerprint = Fingerprint("barrier").call(5, 0, 0).add(0).value();
  return run(board, Board::kBarrier, 0,
             [&](auto& idle) { shm::barrier(board, fingerprint, idle); });
}

bool quick_all_reduce(Board& board, nb::handle x, nb::handle op) {
  Array a;
  if (!usable(board) || !array_of(x, true, a)) return false;
  const int code = op_of(op, a.dtype);
  if (code < 0) return false;
  const uint64_t f = Fingerprint("all_reduce").call(a.dtype, code, 0).add(a.count()).value();
  return run(board, Board::kAllReduce, a.bytes, [&](auto& idle) {
    shm::all_reduce(board, f, a.data, a.count(), {a.dtype, code}, idle);
  });
}

// The call in words, as guard.describe() has it.
std::string described(const Array& a, int code) {
  const char* dtypes[] = {"bool",      "int8",      "int16",   "int32",         "int64",
                          "uint8",     "uint16",    "uint32",  "uint64",        "float16",
                          "bfloat16",  "float32",   "float64", "float8_e4m3fn", "float8_e5m2",
                          "complex64", "complex128"};
  std::string text = "all_reduce(op='";
  text.append(kOps[code]).append("', ").append(dtypes[a.dtype]);
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
  auto collective = [f, a, code, &board = engine.board](shm::Idle& idle) {
    shm::all_reduce(board, f, a.data, a.count(), {a.dtype, code}, idle);
  };
  return engine.submit(collective, "all_reduce", described(a, code), x);
}

bool quick_broadcast(Board& board, nb::handle x, nb::handle root) {
  Array a;
  const long r = PyLong_Check(root.ptr()) ? PyLong_AsLong(root.ptr()) : -1;
  if (!usable(board) || r < 0 || r >= board.size() || !array_of(x, r != board.rank(), a))
    return false;
  const uint64_t f = Fingerprint("broadcast").call(a.dtype, 0, int(r)).add(a.count()).value();
  return run(board, Board::kBroadcast, a.bytes,
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
  return run(board, Board::kAllGather, b.bytes, [&](auto& idle) {
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
  return run(board, Board::kReduceScatter, a.bytes, [&](auto& idle) {
    const auto& offsets = equal_chunks(b.count(), board.size());
    shm::reduce_scatter(board, f, a.data, b.data, offsets.data(), {a.dtype, code}, idle);
  });
}

nb::dict quick_counts(Board& board) {
  const char* kinds[] = {"barrier", "all_reduce", "broadcast", "all_gather", "reduce_scatter"};
  nb::dict counts;
  for (int k = 0; k < Board::kKinds; k++) {
    const Board::Count& c = board.counted(k);
    counts[kinds[k]] =
        nb::make_tuple(c.operations, c.bytes, double(c.busy_ns) * 1e-9, double(c.waited_ns) * 1e-9);
  }
  return counts;
}

void know_tensors(nb::handle tensor, const std::vector<nb::object>& dtypes) {
  known.tensor = tensor.inc_ref().ptr();
  for (auto& dtype : dtypes) known.tensor_dtypes.push_back(nb::object(dtype).release().ptr());
}

}  // namespace

void bind_quick(nb::module_& m, nb::class_<Board>& board) {
  known.ndarray = nb::module_::import_("numpy").attr("ndarray").inc_ref().ptr();
  known.data_ptr = PyUnicode_InternFromString("data_ptr");
  known.numel = PyUnicode_InternFromString("numel");
  known.dtype = PyUnicode_InternFromString("dtype");
  known.is_contiguous = PyUnicode_InternFromString("is_contiguous");
  known.is_cpu = PyUnicode_InternFromString("is_cpu");
  known.requires_grad = PyUnicode_InternFromString("requires_grad");
  for (int code = 0; code < 8; code++) known.ops[code] = PyUnicode_InternFromString(kOps[code]);
  pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
  m.def("know_tensors", &know_tensors, "tensor"_a, "dtypes"_a,
        "Tell the quick way of torch: the Tensor type, and its dtypes (or None) by code.");
  m.def("fingerprint", [](const std::string& kind, int dtype, uint64_t op, int root,
                          const std::vector<uint64_t>& elements) {
    Fingerprint f = Fingerprint(kind).call(dtype, op, root);
    for (uint64_t count : elements) f.add(count);
    return f.value();
  });
  m.def("start_all_reduce", &quick_start_all_reduce,
        "Submit to an engine; None where the long way has to.");
  board.def_rw("quick", &Board::quick, "Whether the quick_… methods may be used now.")
      .def("quick_barrier", &quick_barrier)
      .def("quick_all_reduce", &quick_all_reduce)
      .def("quick_broadcast", &quick_broadcast)
      .def("quick_all_gather", &quick_all_gather)
      .def("quick_reduce_scatter", &quick_reduce_scatter)
      .def_prop_ro("quick_counts", &quick_counts,
                   "kind → (operations, bytes, busy seconds, idle seconds) done the quick way.");
}

}  // namespace pycomm
