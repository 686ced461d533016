#include "call_site.h"

#include "bindings.h"

namespace pycomm {
namespace {

std::string& package = *new std::string;  // never freed: threads may outlive static objects

std::string_view file_of(PyFrameObject* frame) {
  PyCodeObject* code = PyFrame_GetCode(frame);
  Py_ssize_t length = 0;
  const char* file = PyUnicode_AsUTF8AndSize(code->co_filename, &length);
  if (!file) PyErr_Clear();
  Py_DECREF(code);  // the frame has another reference
  return {file ? file : "", size_t(length)};
}

}  // namespace

void know_package(const std::string& folder) { package = folder; }

bool in_package(std::string_view file) { return file.starts_with(package); }

std::string call_site() {
  PyFrameObject* frame = PyEval_GetFrame();
  if (!frame) return "an unknown place";
  Py_INCREF(frame);
  while (in_package(file_of(frame))) {
    PyFrameObject* caller = PyFrame_GetBack(frame);
    if (!caller) break;
    Py_DECREF(frame);
    frame = caller;
  }
  std::string site =
      std::string(file_of(frame)) + ":" + std::to_string(PyFrame_GetLineNumber(frame));
  Py_DECREF(frame);
  return site;
}

}  // namespace pycomm
