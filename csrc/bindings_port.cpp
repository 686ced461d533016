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
  return uint64_t(std::chrono::steady_clock::now().time_since_epoch() /
                  std::chrono::nanoseconds(1));
}

// Counts the time of a call, and how much of it was waiting.
class Timed {
 public:
  explicit Timed(Port& port) : port_(port), start_(now_ns()) {}
  ~Timed() {
    port_.busy_ns += now_ns() - start_;
    port_.waited_ns += waited_;
  }
  void waited() { waited_ = now_ns() - start_; }
  bool has_waited() const { return waited_ > 0; }

 private:
  Port& port_;
  uint64_t start_, waited_ = 0;
};

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
  Timed timed(port);
  const int mate = port.mates[rank];
  const Envelope envelope = envelope_of(port, array, number);
  port.bytes += array.bytes;
  if (port.mailbox->send_now(mate, envelope, array.data)) return nb::bool_(true);
  GilIdle idle;
  if (array.bytes > Mailbox::kLargeBytes) idle.park();
  auto sent = port.mailbox->send(mate, envelope, array.data);
  auto step = [&] {
    if (!sent->block) port.mailbox->progress(mate);
    return sent->advance();
  };
  if (!shortly(port.spins, idle, step)) sent->settle();
  timed.waited();
  return sent->done && !sent->error ? nb::bool_(true) : (idle.resume(), nb::cast(sent));
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
  Timed timed(port);
  const int mate = port.mates[rank];
  auto received = std::make_shared<Receive>();
  received->context = port.context, received->source = rank, received->tag = number;
  received->may_keep = keep;
  if (!out.is_none()) {
    received->wanted = envelope_of(port, array, number);
    received->out = array.data;
  }
  if (!port.mailbox->receive_now(mate, *received)) {
    GilIdle idle;
    port.mailbox->receive(received);
    shortly(port.spins, idle, [&] {
      port.mailbox->progress(mate);
      if (received->block && !timed.has_waited()) {
        timed.waited();
        idle.park();
      }
      return received->done.load(std::memory_order_acquire);
    });
    if (!timed.has_waited()) timed.waited();
  }
  const bool simple = received->done && received->out && !received->disagrees && !received->error;
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
