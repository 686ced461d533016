// Messages that describe themselves, and the two sides' handles of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>

#include "shm/transfer.h"

namespace pycomm::shm {

// What a message says about itself; `source` is a rank of communicator `context`.
struct Envelope {
  static constexpr int kMaxDims = 64;
  static constexpr uint8_t kNotice = 255;  // as dtype: no array, but where to find one
  uint32_t context = 0;
  int32_t source = 0;
  int64_t tag = 0;
  uint64_t bytes = 0;
  uint8_t dtype = 0, dims = 0;
  bool tensor = false;
  int64_t shape[kMaxDims];

  Envelope() {}
  Envelope(const Envelope& other) { *this = other; }
  Envelope& operator=(const Envelope& e) {
    context = e.context, source = e.source, tag = e.tag, bytes = e.bytes;
    dtype = e.dtype, dims = e.dims, tensor = e.tensor;
    std::copy_n(e.shape, e.dims, shape);
    return *this;
  }
  bool same_array(const Envelope& e) const {
    return dtype == e.dtype && dims == e.dims && std::equal(shape, shape + dims, e.shape);
  }
};

class Mate;

// A message that is sent; its memory must not change until it is done.
struct Send {
  Envelope envelope;
  const char* data = nullptr;
  bool helps = true;  // to copy a large message
  Mate* to = nullptr;
  std::atomic<Block*> block = nullptr;  // of a large one, once the peer has been told of it
  std::optional<PeerMemory> target;
  std::exception_ptr error;
  std::atomic_flag busy;
  std::atomic<bool> done = false;
  uint64_t record = 0;  // in the flight recorder, where Python is to end it

  // Makes progress; says whether the memory may be reused.
  bool advance();
  // While the receiver has not come: copies a large message into a slot, if one can be had.
  void settle();

 private:
  void step(Block&);
  void help(Block&);
};

// A receive that is posted, then matched, then done.
struct Receive {
  static constexpr int kAnyone = -1;
  uint32_t context = 0;
  int source = kAnyone;
  int64_t tag = 0;
  char* out = nullptr;  // null: memory is found when the message has come
  Envelope wanted;      // dtype and shape of `out`
  bool may_keep = false;

  Envelope envelope;
  bool disagrees = false;  // `out` is not as the message; then it is not written to
  std::shared_ptr<void> memory;
  char* data = nullptr;
  uint64_t elsewhere = 0;  // the number of a message that another transport brings
  Mate* from = nullptr;
  Block* block = nullptr;
  std::optional<PeerMemory> origin;
  std::exception_ptr error;
  std::atomic_flag busy;
  std::atomic<bool> matched = false, done = false;
  uint64_t record = 0;

  Receive() {}
  Receive(uint32_t of_context, int from_source, int64_t with_tag, bool keep)
      : context(of_context), source(from_source), tag(with_tag), may_keep(keep) {}
  bool matches(const Envelope& e) const {
    return e.context == context && e.tag == tag && (source == kAnyone || source == e.source);
  }
  void accept(const Envelope&);
  void find_memory();
  void finish() { done.store(true, std::memory_order_release); }
  // Makes progress with a large message; says whether the data are there.
  bool advance();
  // Takes over a large message without the sender's help, which could end; false: not now.
  bool take_alone();

 private:
  void step();
  void take();
  void move();
  void empty_slot();
};

// Memory for messages, of any size; kept for the next one of the same size when it is large.
std::shared_ptr<void> message_memory(size_t bytes);

}  // namespace pycomm::shm
