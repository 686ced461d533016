// Messages of every size between random ranks: in any order of posting, kept or copied, large ones
// from and to slabs and ordinary memory, with and without reaching the other side's memory.
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "ranks.h"
#include "shm/mailbox.h"

namespace pycomm::test {
namespace {

using shm::Envelope;
using shm::Mailbox;
using shm::Receive;

constexpr size_t kInline = shm::Mate::kInlineBytes, kPage = 4096;
constexpr int kBatch = 40;

struct Message {
  int from, to;
  size_t bytes;
  uint64_t number;
  char at(size_t i) const { return char(number * 31 + i * 2'654'435'761u / 8192); }
};

size_t some_bytes(Random& random) {
  switch (random.below(5)) {
    case 0:
      return random.below(4);
    case 1:
      return random.below(200);
    case 2:
      return random.near(kInline, 70);
    case 3:
      return random.near(16 * kPage, kPage + 70);
    default:
      return random.below(size_t(1) << 17);
  }
}

std::vector<Message> batch(Random& shared, int size, uint64_t first) {
  std::vector<Message> messages;
  for (int k = 0; k < kBatch; k++)
    messages.push_back({int(shared.below(size)), int(shared.below(size)), some_bytes(shared),
                        first + uint64_t(k)});
  return messages;
}

// One rank's part in a batch: its messages as they are, and those of the others as they come.
class Player {
 public:
  Player(Mailbox& mailbox, int me, Random own) : mailbox_(mailbox), me_(me), own_(own) {}

  void play(const std::vector<Message>& messages) {
    for (const Message& m : messages) {
      if (m.to == me_) receive(m);
      if (m.from == me_) send(m);
      if (own_.once_in(10)) std::this_thread::yield();
    }
    wait();
  }

 private:
  struct Sent {
    std::unique_ptr<Buffer> data;
    std::shared_ptr<shm::Send> handle;
  };
  struct Expected {
    Message message;
    std::unique_ptr<Buffer> out;
    std::shared_ptr<Receive> handle;
  };

  Envelope envelope(const Message& m) {
    Envelope e;
    e.source = m.from, e.tag = int64_t(m.number % 3), e.bytes = m.bytes;
    e.dims = 1, e.shape[0] = int64_t(m.bytes);
    return e;
  }

  void send(const Message& m) {
    auto data = std::make_unique<Buffer>(m.bytes, own_.once_in(3), 16 * own_.below(4));
    for (size_t i = 0; i < m.bytes; i++) data->data()[i] = m.at(i);
    auto handle = mailbox_.send(m.to, envelope(m), data->data());
    if (own_.once_in(3)) handle->settle();
    sent_.push_back({std::move(data), handle});
  }

  // By number, as messages of one tag come in the order of their sending.
  void receive(const Message& m) {
    auto handle = std::make_shared<Receive>();
    handle->source = m.from, handle->tag = int64_t(m.number % 3);
    std::unique_ptr<Buffer> out;
    if (own_.once_in(2)) {
      out = std::make_unique<Buffer>(m.bytes, own_.once_in(3), 16 * own_.below(4));
      handle->out = out->data();
      handle->wanted = envelope(m);
    }
    handle->may_keep = own_.once_in(2);
    mailbox_.receive(handle);
    expected_.push_back({m, std::move(out), handle});
  }

  void wait() {
    while (!sent_.empty() || !expected_.empty()) {
      mailbox_.progress();
      std::erase_if(sent_, [](Sent& s) { return s.handle->advance(); });
      std::erase_if(expected_, [&](Expected& e) { return e.handle->done && check(e); });
      std::this_thread::yield();
    }
  }

  bool check(const Expected& e) {
    expect(!e.handle->error && e.handle->envelope.bytes == e.message.bytes, "a message was lost");
    for (size_t i = 0; i < e.message.bytes; i++)
      expect(e.handle->data[i] == e.message.at(i), "a message has other bytes");
    return true;
  }

  Mailbox& mailbox_;
  int me_;
  Random own_;
  std::vector<Sent> sent_;
  std::vector<Expected> expected_;
};

void exchange(int size, bool direct, const Settings& settings) {
  std::vector<std::shared_ptr<shm::Segment>> inboxes;  // outlive all mailboxes
  std::vector<std::unique_ptr<Mailbox>> boxes;
  for (int r = 0; r < size; r++) {
    boxes.push_back(std::make_unique<Mailbox>(size, r, direct, false));
    inboxes.push_back(boxes.back()->segment());
  }
  for (int r = 0; r < size; r++)
    for (int p = 0; p < size; p++)
      if (p != r)
        boxes[r]->connect(p, std::make_unique<shm::Segment>(inboxes[p]->alias()),
                          {getpid(), boxes[p]->secret(), boxes[p]->secret_address()});
  std::vector<std::thread> threads;
  for (int r = 0; r < size; r++)
    threads.emplace_back([&, r] {
      Random shared(settings.seed, size);
      Player player(*boxes[r], r, Random(settings.seed, r + 1));
      for (int k = 0; k < 1 + settings.steps / (4 * kBatch); k++)
        player.play(batch(shared, size, uint64_t(k) * kBatch));
    });
  for (auto& t : threads) t.join();
}

void run(const Settings& settings) {
  for (int size : {1, 2, 4})
    for (bool direct : {true, false}) exchange(size, direct, settings);
}

const Scenario messages("messages", run);

}  // namespace
}  // namespace pycomm::test
