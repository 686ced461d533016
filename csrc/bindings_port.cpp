// The short way of a message between node-mates: from the Python call straight to the mailbox.
//
// Like the short way of collectives it takes contiguous NumPy arrays and torch CPU tensors, and
// returns false for everything else; then the long way in Python does the call, or says what is
// wrong. A message that takes longer is returned as a handle, to be waited for in Python.
#include <nanobind/stl/shared_ptr.h>

#include "bindings_arrays.h"
#include "bindings_recorded.h"
#include "shm/mailbox.h"
#include "shm/watchdog.h"

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
  flight::Flight* flight;
  bool open = true;
  shm::Watchdog* watchdog = nullptr;
  std::vector<int> processes = {};  // of the communicator, by rank, as the watchdog numbers them
  uint64_t bytes = 0, busy_ns = 0, waited_ns = 0;
};

// Counts the time of a call and how much of it was waiting, and records the call.
class Timed {
 public:
  Timed(Port& port, const Recorded& call)
      : port_(port), start_(flight::now_ns()), number_(port.flight->message(call.call(), start_)) {}
  ~Timed() {
    const uint64_t end = flight::now_ns();
    port_.busy_ns += end - start_;
    if (!goes_on_)
      flight::Recorder::instance().end(number_, flight::State::done, end, received_.bytes,
                                       received_.dtype);
  }
  void waited() {
    if (!waited_) port_.waited_ns += waited_ = flight::now_ns() - start_;
  }
  void received(const Envelope& e) {
    received_ = Recorded{Recorded::kReceive, e.bytes, e.dtype}.call();
  }
  // Returns the record of a call that goes on in Python, which is to end it.
  uint64_t goes_on() {
    goes_on_ = true;
    flight::Recorder::instance().came_from(number_, recorded_site());
    return number_;
  }

 private:
  Port& port_;
  uint64_t start_, number_, waited_ = 0;
  bool goes_on_ = false;
  flight::Call received_;
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

bool anyone_died(const Port& port) {
  return port.watchdog && port.watchdog->deaths() &&
         std::any_of(port.processes.begin(), port.processes.end(),
                     [&](int process) { return port.watchdog->is_dead(process); });
}

bool usable(const Port& port) { return port.open && !in_forked_child && !anyone_died(port); }

// Returns whether it was done, or the Send if that takes longer.
nb::object send(Port& port, nb::handle x, nb::handle dst, nb::handle tag) {
  Array array;
  int rank;
  int64_t number;
  if (!usable(port) || !rank_of(dst, port, rank) || !tag_of(tag, number) ||
      !shaped_array_of(x, false, array))
    return nb::bool_(false);
  Timed timed(port, {Recorded::kSend, array.bytes, array.dtype, -1, rank, number});
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
  idle.resume();
  if (sent->done && !sent->error) return nb::bool_(true);
  sent->record = timed.goes_on();
  return nb::cast(sent);
}

void wait_shortly(Port& port, const std::shared_ptr<Receive>& receive, int mate, Timed& timed) {
  GilIdle idle;
  port.mailbox->receive(receive);
  shortly(port.spins, idle, [&] {
    port.mailbox->progress(mate);
    if (receive->block) {
      timed.waited();
      idle.park();
    }
    return receive->done.load(std::memory_order_acquire);
  });
  timed.waited();
}

// Returns whether the message is in `out`, or the Receive if that takes longer or there is no
// `out`.
nb::object recv(Port& port, nb::handle src, nb::handle tag, nb::handle out, bool keep) {
  Array array;
  int rank;
  int64_t number;
  const bool has_out = !out.is_none();
  if (!usable(port) || !rank_of(src, port, rank) || !tag_of(tag, number) ||
      (has_out && !shaped_array_of(out, true, array)))
    return nb::bool_(false);
  Timed timed(port, {Recorded::kReceive, has_out ? array.bytes : 0, has_out ? array.dtype : -1, -1,
                     rank, number});
  auto receive = std::make_shared<Receive>(port.context, rank, number, keep);
  if (has_out) {
    receive->wanted = envelope_of(port, array, number);
    receive->out = array.data;
  }
  const int mate = port.mates[rank];
  if (!port.mailbox->receive_now(mate, *receive)) wait_shortly(port, receive, mate, timed);
  const bool good = receive->done && !receive->disagrees && !receive->error &&
                    receive->envelope.dtype != Envelope::kNotice;
  if (good && has_out) return nb::bool_(true);
  if (good)
    timed.received(receive->envelope);
  else
    receive->record = timed.goes_on();
  return nb::cast(receive);
}

}  // namespace

void bind_port(nb::module_& m) {
  nb::class_<Port>(m, "Port")
      .def(
          "__init__",
          [](Port* self, Mailbox& mailbox, uint32_t context, int rank, std::vector<int> mates,
             flight::Flight& flight) {
            const int spins = mailbox.crowded() ? 20 : 2000;
            new (self) Port{&mailbox, context, rank, std::move(mates), spins, &flight};
          },
          "mailbox"_a, "context"_a, "rank"_a, "mates"_a, "flight"_a, nb::keep_alive<1, 2>(),
          nb::keep_alive<1, 6>())
      .def_rw("open", &Port::open, "Whether `send` and `recv` may be used now.")
      .def(
          "heed",
          [](Port& p, shm::Watchdog& watchdog, std::vector<int> processes) {
            p.watchdog = &watchdog;
            p.processes = std::move(processes);
          },
          "watchdog"_a, "processes"_a, nb::keep_alive<1, 2>(),
          "Do nothing any more once one of the communicator's processes has died.")
      .def("send", &send, "x"_a.none(), "dst"_a.none(), "tag"_a.none())
      .def("recv", &recv, "src"_a.none(), "tag"_a.none(), "out"_a.none(), "keep"_a)
      .def_prop_ro("counts", [](Port& p) {
        return nb::make_tuple(p.bytes, double(p.busy_ns) * 1e-9, double(p.waited_ns) * 1e-9);
      });
}

}  // namespace pycomm
