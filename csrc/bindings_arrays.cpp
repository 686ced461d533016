#include "bindings_arrays.h"

namespace pycomm {
namespace {

// The Python types that are known, and what was interned for them. Never freed.
struct Known {
  PyObject* ndarray = nullptr;
  PyObject* tensor = nullptr;
  std::vector<PyObject*> tensor_dtypes;  // by code; null where torch has none
  PyObject* ops[9] = {};                 // interned names, by code
  PyObject *data_ptr, *numel, *dtype, *shape, *is_contiguous, *is_cpu, *requires_grad;
};
Known known;

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
  array.data = static_cast<char*>(buffer.buf);
  array.bytes = size_t(buffer.len);
  array.dtype = dtype_of(buffer.format);
  array.tensor = false;
  array.dimensions = buffer.ndim;
  for (int d = 0; d < buffer.ndim; d++) array.lengths[d] = size_t(buffer.shape[d]);
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
      array.tensor = true;
      return true;
    }
  return false;
}

bool tensor_lengths(PyObject* x, Array& array) {
  nb::object shape = nb::steal(PyObject_GetAttr(x, known.shape));
  if (!shape.is_valid() || !PyTuple_Check(shape.ptr())) return false;
  const Py_ssize_t dimensions = PyTuple_GET_SIZE(shape.ptr());
  if (dimensions > Array::kMostDimensions) return false;
  array.dimensions = int(dimensions);
  for (int d = 0; d < array.dimensions; d++)
    array.lengths[d] = PyLong_AsSize_t(PyTuple_GET_ITEM(shape.ptr(), d));
  return !PyErr_Occurred();
}

void know_tensors(nb::handle tensor, const std::vector<nb::object>& dtypes) {
  known.tensor = tensor.inc_ref().ptr();
  for (auto& dtype : dtypes) known.tensor_dtypes.push_back(nb::object(dtype).release().ptr());
}

}  // namespace

bool array_of(nb::handle x, bool result, Array& array) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(x.ptr()));
  bool found = type == known.ndarray  ? numpy_array(x.ptr(), result, array)
               : type == known.tensor ? torch_tensor(x.ptr(), result, array)
                                      : false;
  if (!found) PyErr_Clear();
  return found;
}

bool shaped_array_of(nb::handle x, bool result, Array& array) {
  if (!array_of(x, result, array)) return false;
  if (!array.tensor || tensor_lengths(x.ptr(), array)) return true;
  PyErr_Clear();
  return false;
}

int op_of(nb::handle op, int dtype) {
  for (int code = 0; code < 8; code++)
    if (op.ptr() == known.ops[code]) return cpu::loops({dtype, code}).widen ? code : -1;
  return -1;
}

void bind_arrays(nb::module_& m) {
  known.ndarray = nb::module_::import_("numpy").attr("ndarray").inc_ref().ptr();
  known.data_ptr = PyUnicode_InternFromString("data_ptr");
  known.numel = PyUnicode_InternFromString("numel");
  known.dtype = PyUnicode_InternFromString("dtype");
  known.shape = PyUnicode_InternFromString("shape");
  known.is_contiguous = PyUnicode_InternFromString("is_contiguous");
  known.is_cpu = PyUnicode_InternFromString("is_cpu");
  known.requires_grad = PyUnicode_InternFromString("requires_grad");
  const char* names[] = {"sum", "avg", "prod", "min", "max", "band", "bor", "bxor"};
  for (int code = 0; code < 8; code++) known.ops[code] = PyUnicode_InternFromString(names[code]);
  m.def("know_tensors", &know_tensors, "tensor"_a, "dtypes"_a,
        "Tell the quick way of torch: the Tensor type, and its dtypes (or None) by code.");
}

}  // namespace pycomm
