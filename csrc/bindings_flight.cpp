// The flight recorder for Python, and the call sites that it records.
#include "bindings.h"
#include "call_site.h"
#include "flight.h"

namespace pycomm {
namespace {

using namespace flight;

// Texts of call sites by instruction, since it takes long to find a line.
class Sites {
 public:
  static constexpr Text kInside = 0xffff;

  Text text(PyFrameObject* frame) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const int place = instruction(frame);
    Entry& entry = entries_[(reinterpret_cast<uintptr_t>(code) / 16 + size_t(place)) % kEntries];
    if (entry.code == code && entry.place == place) {
      Py_DECREF(code);
      return entry.text;
    }
    const Text text = describe(code, frame);
    PyCodeObject* before = entry.code;
    entry = {code, place, text};
    Py_XDECREF(before);
    return text;
  }

 private:
  static constexpr size_t kEntries = 1024;
  struct Entry {
    PyCodeObject* code;  // owned, so that no other gets its address
    int place;
    Text text;
  };

  static int instruction(PyFrameObject* frame) {
#if PY_VERSION_HEX >= 0x030B0000
    return PyFrame_GetLasti(frame);
#else
    return PyFrame_GetLineNumber(frame);
#endif
  }

  static Text describe(PyCodeObject* code, PyFrameObject* frame) {
    const char* file = PyUnicode_AsUTF8(code->co_filename);
    if (!file) return PyErr_Clear(), Text(0);
    if (in_package(file)) return kInside;
    return Recorder::instance().text(std::string(file) + ":" +
                                     std::to_string(PyFrame_GetLineNumber(frame)));
  }

  Entry entries_[kEntries] = {};
};

Call call(const std::string& kind, const std::string& dtype, uint64_t bytes) {
  Recorder& recorder = Recorder::instance();
  Call made;
  made.kind = recorder.text(kind);
  made.dtype = recorder.text(dtype);
  made.bytes = bytes;
  return made;
}

Call collective(const std::string& kind, const std::string& op, const std::string& dtype,
                uint64_t bytes, std::optional<int> root, const std::string& algorithm,
                const std::optional<std::string>& site) {
  Recorder& recorder = Recorder::instance();
  Call made = call(kind, dtype, bytes);
  made.op = recorder.text(op);
  made.algorithm = recorder.text(algorithm);
  made.peer = root.value_or(Call::kNobody);
  made.site = site ? recorder.text(*site) : recorded_site();
  return made;
}

nb::dict operation(const Record& r, const Snapshot& all) {
  const char* states[] = {"running", "done", "failed"};
  auto seconds = [&](uint64_t ns) { return double(int64_t(ns) + all.header.unix_ns) * 1e-9; };
  auto text = [&](Text place) {  // its beginning may be half a character
    const std::string& bytes = all.texts.at(place);
    return nb::steal(PyUnicode_DecodeUTF8(bytes.data(), Py_ssize_t(bytes.size()), "replace"));
  };
  auto optional = [](auto value, bool known) {
    return known ? nb::cast(value) : nb::object(nb::none());
  };
  nb::dict d;
  d["world"] = r.group.world;
  d["communicator"] = r.group.number;
  d["first_rank"] = r.group.first;
  d["sequence"] = r.sequence;
  d["kind"] = text(r.call.kind);
  d["op"] = text(r.call.op);
  d["dtype"] = text(r.call.dtype);
  d["bytes"] = r.call.bytes;
  d["peer"] = optional(r.call.peer, r.call.peer != Call::kNobody);
  d["tag"] = r.call.tag;
  d["algorithm"] = text(r.call.algorithm);
  d["site"] = text(r.call.site);
  d["start"] = seconds(r.start_ns);
  d["end"] = optional(seconds(r.end_ns), r.end_ns != 0);
  d["took_us"] = optional(double(r.end_ns - r.start_ns) * 1e-3, r.end_ns != 0);
  d["state"] = states[r.end_ns ? int(r.state) : 0];
  return d;
}

nb::dict report(const Snapshot& all) {
  nb::list operations;
  for (const Record& record : all.records) operations.append(operation(record, all));
  nb::dict d;
  d["pid"] = all.header.pid;
  d["rank"] = all.header.rank;
  d["size"] = all.header.size;
  d["job"] = all.header.job;
  d["begun"] = all.header.begun;
  d["operations"] = operations;
  return d;
}

}  // namespace

Text recorded_site() {
  static Sites* sites = new Sites;  // never destroyed: it owns Python objects
  PyFrameObject* frame = PyThreadState_GetFrame(PyThreadState_Get());
  while (frame) {
    const Text text = sites->text(frame);
    PyFrameObject* back = text == Sites::kInside ? PyFrame_GetBack(frame) : nullptr;
    Py_DECREF(frame);
    if (text != Sites::kInside) return text;
    frame = back;
  }
  return 0;
}

void bind_flight(nb::module_& m) {
  m.attr("FLIGHT_FILE") = Recorder::kName;
  m.attr("FLIGHT_RECORDS") = Recorder::kRecords;
  m.def(
      "describe_flight",
      [](int rank, int size, const std::string& job) {
        Recorder::instance().describe(rank, size, job);
      },
      "rank"_a, "size"_a, "job"_a);
  m.def("read_flight", [] { return report(Recorder::instance().read()); });
  m.def(
      "read_flight_of", [](const std::string& path) { return report(Recorder::read(path)); },
      "path"_a);
  nb::class_<Flight>(m, "Flight")
      .def(nb::init<uint32_t, uint32_t, uint32_t>(), "world"_a, "number"_a, "first"_a)
      .def(
          "collective",
          [](Flight& self, const std::string& kind, const std::string& op, const std::string& dtype,
             uint64_t bytes, std::optional<int> root, const std::string& algorithm,
             const std::optional<std::string>& site) {
            self.collective(collective(kind, op, dtype, bytes, root, algorithm, site), now_ns());
          },
          "kind"_a, "op"_a, "dtype"_a, "nbytes"_a, "root"_a, "algorithm"_a, "site"_a)
      .def(
          "begin",
          [](Flight& self, const std::string& kind, const std::string& op, const std::string& dtype,
             uint64_t bytes, std::optional<int> root, const std::string& algorithm,
             const std::optional<std::string>& site) {
            return self.begin(collective(kind, op, dtype, bytes, root, algorithm, site), now_ns());
          },
          "kind"_a, "op"_a, "dtype"_a, "nbytes"_a, "root"_a, "algorithm"_a, "site"_a,
          "Record a collective that an engine ends; return its number.")
      .def(
          "end",
          [](Flight& self, bool done) { self.end(done ? State::done : State::failed, now_ns()); },
          "done"_a)
      .def(
          "message",
          [](Flight& self, const std::string& kind, const std::string& dtype, uint64_t bytes,
             int peer, int64_t tag) {
            Call made = call(kind, dtype, bytes);
            made.peer = peer;
            made.tag = tag;
            made.site = recorded_site();
            return self.message(made, now_ns());
          },
          "kind"_a, "dtype"_a, "nbytes"_a, "peer"_a, "tag"_a)
      .def_static(
          "end_message",
          [](uint64_t number, bool done, const std::string& dtype, uint64_t received) {
            Recorder& recorder = Recorder::instance();
            recorder.end(number, done ? State::done : State::failed, now_ns(), received,
                         recorder.text(dtype));
          },
          "number"_a, "done"_a, "dtype"_a = "", "received"_a = 0);
}

}  // namespace pycomm
