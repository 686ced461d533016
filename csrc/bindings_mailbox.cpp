// The mailbox of a process and the handles of its messages, for Python.
#include <nanobind/stl/shared_ptr.h>

#include "bindings.h"
#include "shm/mailbox.h"

namespace pycomm {
namespace {

using shm::Envelope;
using shm::Mailbox;
using shm::Receive;
using shm::Send;

// Memory that a message came in, as a writable buffer.
struct MessageMemory {
  std::shared_ptr<void> memory;
  void* data;
  size_t bytes;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* memory = nb::inst_ptr<MessageMemory>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, memory->data, Py_ssize_t(memory->bytes), 0, flags);
}

PyType_Slot memory_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

Envelope envelope_of(uint32_t context, int source, int64_t tag, uint64_t bytes, int dtype,
                     bool tensor, const std::vector<int64_t>& shape) {
  if (shape.size() > Envelope::kMaxDims) throw std::invalid_argument("too many dimensions");
  Envelope e;
  e.context = context, e.source = source, e.tag = tag, e.bytes = bytes;
  e.dtype = uint8_t(dtype), e.dims = uint8_t(shape.size()), e.tensor = tensor;
  std::copy(shape.begin(), shape.end(), e.shape);
  return e;
}

template <class Message>
bool complete(Message& message) {
  if (!message.done.load(std::memory_order_acquire)) return false;
  if (message.error) std::rethrow_exception(message.error);
  return true;
}

void bind_handles(nb::module_& m) {
  nb::class_<MessageMemory>(m, "MessageMemory", nb::type_slots(memory_slots));
  nb::class_<Send>(m, "Send")
      .def(
          "test",
          [](Send& s) {
            if (!complete(s)) {
              nb::gil_scoped_release release;
              s.advance();
            }
            return complete(s);
          },
          "Make progress and say whether the memory may be reused.")
      .def_ro("record", &Send::record, "Its number in the flight recorder, if it goes on there.")
      .def("settle", &Send::settle, nb::call_guard<nb::gil_scoped_release>(),
           "If the receiver has not come, copy a large message into a slot.");
  nb::class_<Receive>(m, "Receive")
      .def("test", &complete<Receive>, "Say whether the data are there.")
      .def_prop_ro("done", [](Receive& r) { return r.done && !r.error; })
      .def_prop_ro("matched", [](Receive& r) { return r.matched.load(); })
      .def_ro("record", &Receive::record)
      .def_ro("disagrees", &Receive::disagrees, "Whether `out` was not as the message.")
      .def_ro("elsewhere", &Receive::elsewhere)
      .def_prop_ro("source", [](Receive& r) { return r.envelope.source; })
      .def_prop_ro("tag", [](Receive& r) { return r.envelope.tag; })
      .def_prop_ro("dtype", [](Receive& r) { return int(r.envelope.dtype); })
      .def_prop_ro("is_notice",
                   [](Receive& r) { return r.matched && r.envelope.dtype == Envelope::kNotice; })
      .def_prop_ro("is_tensor", [](Receive& r) { return r.envelope.tensor; })
      .def_prop_ro("shape",
                   [](Receive& r) {
                     const auto* shape = r.envelope.shape;
                     nb::list lengths;
                     for (int d = 0; d < r.envelope.dims; d++) lengths.append(shape[d]);
                     return nb::tuple(lengths);
                   })
      .def_prop_ro("address", [](Receive& r) { return reinterpret_cast<uintptr_t>(r.data); })
      .def_prop_ro("nbytes", [](Receive& r) { return r.envelope.bytes; })
      .def("memory", [](Receive& r) { return MessageMemory{r.memory, r.data, r.envelope.bytes}; })
      .def("finish", &Receive::finish, "Another transport has brought the data.");
}

}  // namespace

void bind_mailbox(nb::module_& m) {
  bind_handles(m);
  nb::class_<Mailbox>(m, "Mailbox")
      .def(nb::init<int, int, bool, bool>(), "mates"_a, "me"_a, "direct"_a, "crowded"_a)
      .def_prop_ro("fd", [](Mailbox& b) { return b.segment()->fd(); })
      .def_prop_ro("nonce", [](Mailbox& b) { return b.segment()->nonce(); })
      .def_prop_ro("secret", &Mailbox::secret)
      .def_prop_ro("secret_address", &Mailbox::secret_address)
      .def("close_descriptor", &Mailbox::close_descriptor)
      .def(
          "connect",
          [](Mailbox& b, int mate, int pid, int fd, uint64_t nonce, uint64_t secret,
             uint64_t secret_address) {
            auto inbox = std::make_unique<shm::Segment>(shm::Segment::open(pid, fd, nonce));
            b.connect(mate, std::move(inbox), {pid, secret, secret_address});
          },
          "mate"_a, "pid"_a, "fd"_a, "nonce"_a, "secret"_a, "secret_address"_a,
          "Open the inbox of a node-mate by its descriptor.")
      .def(
          "send",
          [](Mailbox& b, int mate, uint32_t context, int source, int64_t tag, uintptr_t address,
             uint64_t bytes, int dtype, bool tensor, const std::vector<int64_t>& shape) {
            const Envelope e = envelope_of(context, source, tag, bytes, dtype, tensor, shape);
            nb::gil_scoped_release release;
            return b.send(mate, e, at<char>(address));
          },
          "Start to send; the memory must not change until `test` says so.")
      .def(
          "receive",
          [](Mailbox& b, uint32_t context, int source, int64_t tag, bool may_keep) {
            auto receive = std::make_shared<Receive>(context, source, tag, may_keep);
            b.receive(receive);
            return receive;
          },
          "Post a receive into memory of its own.")
      .def(
          "receive_into",
          [](Mailbox& b, uint32_t context, int source, int64_t tag, uintptr_t address,
             uint64_t bytes, int dtype, const std::vector<int64_t>& shape) {
            auto receive = std::make_shared<Receive>(context, source, tag, false);
            receive->wanted = envelope_of(context, source, tag, bytes, dtype, false, shape);
            receive->out = at<char>(address);
            b.receive(receive);
            return receive;
          },
          "Post a receive into an array.")
      .def(
          "deliver",
          [](Mailbox& b, uint32_t context, int source, int64_t tag, uintptr_t address,
             uint64_t bytes, int dtype, bool tensor, const std::vector<int64_t>& shape,
             uint64_t elsewhere) {
            const Envelope e = envelope_of(context, source, tag, bytes, dtype, tensor, shape);
            return b.deliver(e, at<char>(address), elsewhere);
          },
          "A message has come by another transport; return the receive that takes it, if any.")
      .def(
          "progress", [](Mailbox& b) { b.progress(); }, nb::call_guard<nb::gil_scoped_release>())
      .def("forget", &Mailbox::forget, "context"_a)
      .def("withdraw", &Mailbox::withdraw, "receive"_a, "It takes no message any more.")
      .def("expect", [](Mailbox& b) { return b.doorbell().expect(); })
      .def(
          "sleep", [](Mailbox& b, uint32_t expected, long us) { b.doorbell().sleep(expected, us); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("leave", [](Mailbox& b) { b.doorbell().leave(); });
}

}  // namespace pycomm
