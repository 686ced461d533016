// The short way of a message between node-mates: from the Python call straight to the mailbox.
//
// Like the short way of collectives it takes contiguous NumPy arrays and torch CPU tensors, and
// returns false for everything else; then the long way in Python does the call, or says what is
// wrong. A message that takes longer is returned as a handle, to be waited for in Python.
#include <nanobind/stl/shared_ptr.h>

#include <chrono>

#include "bindings_arrays.h"
#include "shm/mailbox.h"

namespace pycomm {
namespace {

using shm::Envelope;
using shm::Mailbox;
using shm::Receive;
using shm::Send;

// How one communicator uses the mailbox of its process, and what that cost.
struct Port {
  Mailbox* mailbox;
  uint32_t context;
  int rank;
  std::vector<int> mates;  // by rank; negative: on another host
  int spins;
  bool open = true;
  uint64_t bytes = 0, busy_ns = 0, waited_ns = 0;
};

uint64_t now_ns() {
  return uint64_t(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

// Tries `step` for a while, at first with the interpreter lock; whether it came to succeed.
template <class Step>
bool shortly(int spins, GilIdle& idle, Step step) {
  for (int i = 0; i < spins; i++) {
    if (step()) return true;
    shm::pause();
  }
  for (int i = 0; i < 50; i++) {
    if (step()) return true;
    if (i > 5) idle.park();
    sched_yield();
  }
  return step();
}

Envelope envelope_of(const Port& port, const Array& array, int64_t tag) {
  Envelope e;
  e.context = port.context, e.source = port.rank, e.tag = tag, e.bytes = array.bytes;
  e.dtype = uint8_t(array.dtype), e.dims = uint8_t(array.dimensions), e.tensor = array.tensor;
  std::copy_n(array.lengths, array.dimensions, e.shape);
  return e;
}

bool rank_of(nb::handle number, const Port& port, int& rank) {
  if (!PyLong_CheckExact(number.ptr())) return false;
  int overflow = 0;
  const long value = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
  rank = int(value);
  return !overflow && value >= 0 && value < long(port.mates.size()) && port.mates[rank] >= 0;
}

bool tag_of(nb::handle number, int64_t& tag) {
  if (!PyLong_CheckExact(number.ptr())) return false;
  int overflow = 0;
  tag = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return !overflow;
}

bool usable(const Port& port) { return port.open && !in_forked_child; }

// Returns whether it was done, or the Send if that takes longer.
nb::object send(Port& port, nb::handle x, nb::handle dst, nb::handle tag) {
  Array array;
  int rank;
  int64_t number;
  if (!usable(port) || !rank_of(dst, port, rank) || !tag_of(tag, number) ||
      !shaped_array_of(x, false, array))
    return nb::bool_(false);
  const uint64_t start = now_ns();
  GilIdle idle;
  if (array.bytes > Mailbox::kLargeBytes) idle.park();
  auto sent = port.mailbox->send(port.mates[rank], envelope_of(port, array, number), array.data);
  bool done = sent->done;
  if (!done) {
    done = shortly(port.spins, idle, [&] { return sent->advance(); });
    if (!done) sent->settle();
    done = sent->advance();
    port.waited_ns += now_ns() - start;
  }
  idle.resume();
  port.bytes += array.bytes;
  port.busy_ns += now_ns() - start;
  return done && !sent->error ? nb::bool_(true) : nb::cast(sent);
}

// Returns whether the message is in `out`, or the Receive if that takes longer or there is no
// `out`.
nb::object recv(Port& port, nb::handle src, nb::handle tag, nb::handle out, bool keep) {
  Array array;
  int rank;
  int64_t number;
  if (!usable(port) || !rank_of(src, port, rank) || !tag_of(tag, number) ||
      (!out.is_none() && !shaped_array_of(out, true, array)))
    return nb::bool_(false);
  const uint64_t start = now_ns();
  GilIdle idle;
  auto received = std::make_shared<Receive>();
  received->context = port.context, received->source = rank, received->tag = number;
  received->may_keep = keep;
  if (!out.is_none()) {
    received->wanted = envelope_of(port, array, number);
    received->out = array.data;
  }
  port.mailbox->receive(received);
  uint64_t matched_ns = 0;
  const bool done = shortly(port.spins, idle, [&] {
    if (received->matched && !matched_ns && received->block) {
      matched_ns = now_ns();
      idle.park();
    }
    port.mailbox->progress(port.mates[rank]);
    return received->done.load(std::memory_order_acquire);
  });
  idle.resume();
  const uint64_t end = now_ns();
  port.busy_ns += end - start;
  port.waited_ns += (matched_ns ? matched_ns : end) - start;
  const bool simple = done && !out.is_none() && !received->disagrees && !received->error;
  return simple ? nb::bool_(true) : nb::cast(received);
}

}  // namespace

void bind_port(nb::module_& m) {
  nb::class_<Port>(m, "Port")
      .def(
          "__init__",
          [](Port* self, Mailbox& mailbox, uint32_t context, int rank, std::vector<int> mates,
             bool crowded) {
            new (self) Port{&mailbox, context, rank, std::move(mates), crowded ? 20 : 2000};
          },
          "mailbox"_a, "context"_a, "rank"_a, "mates"_a, "crowded"_a, nb::keep_alive<1, 2>())
      .def_rw("open", &Port::open, "Whether `send` and `recv` may be used now.")
      .def("send", &send, "x"_a, "dst"_a, "tag"_a)
      .def("recv", &recv, "src"_a, "tag"_a, "out"_a.none(), "keep"_a)
      .def_prop_ro("counts", [](Port& p) {
        return nb::make_tuple(p.bytes, double(p.busy_ns) * 1e-9, double(p.waited_ns) * 1e-9);
      });
}

}  // namespace pycomm
