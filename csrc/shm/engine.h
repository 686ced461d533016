// The asynchronous collectives of a board: one after another, in the order of their submission.
//
// They run on a thread of the engine's own, which never takes the interpreter lock and sleeps
// whenever it waits; or on a thread that waits for one of them, where that comes first. Either way
// one at a time, so the board needs no lock: the mutex orders one operation before the next.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "shm/board.h"

namespace pycomm::shm {

// A collective with its arguments; their memory has to last until it has run.
using Collective = std::function<void(Idle&)>;

// `error` and `notes` are written before `done` (release), and then never again.
struct Operation {
  bool finished() const { return done.load(std::memory_order_acquire); }

  std::string kind;
  std::string note;     // the call in words, for the ranks that made another
  uint64_t record = 0;  // its number in the flight recorder, if there is one
  Collective collective;
  std::atomic<bool> done = false;
  std::exception_ptr error;
  std::vector<std::string> notes;  // everybody's, after Mismatch
};

class Engine {
 public:
  // Tells that half of the timeout is over; called on the engine's thread.
  using Late = void (*)(int rank, int peer, double waited_s);

  // The thread may run on `cores`; if there are none, where the process may.
  Engine(Board& board, std::vector<int> cores, Late late);
  ~Engine();
  Engine(const Engine&) = delete;

  // Starts the thread with the first operation. After a failure the operation fails the same way.
  void submit(std::shared_ptr<Operation> operation);

  // Whether an operation is not finished. Only the thread that submits may ask.
  bool busy() const { return last_ && !last_->finished(); }

  // Waits for an operation, at most `timeout_s` seconds; returns whether it is finished. Without a
  // limit, the caller does what the thread has not begun, and gets what that throws but Failure.
  // Throws std::runtime_error in a forked child.
  bool wait(const Operation& operation, std::optional<double> timeout_s, Idle& idle);

  // Waits for all of them.
  void drain(Idle& idle) {
    if (const auto last = last_) wait(*last, std::nullopt, idle);
  }

  // The first operation that failed, or null.
  std::shared_ptr<Operation> failed() const;

  // Ends the thread; operations that are not finished fail with Interrupted.
  void stop();

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Background;
  struct Shared {
    std::mutex mutex;
    std::condition_variable to_do, done;
    std::deque<std::shared_ptr<Operation>> queue;
    std::shared_ptr<Operation> failed;
    bool running = false;  // the one before the queue's first
    std::atomic<bool> stopping = false;
    std::thread thread;
  };

  bool in_forked_child() const { return getpid() != owner_; }
  void start();
  void work();
  bool next_is_free() const { return !shared_->running && !shared_->queue.empty(); }
  void run_next(Lock& lock, Idle& idle);
  std::exception_ptr run(Operation& operation, Idle& idle);
  void finish(Operation& operation);

  Board& board_;
  std::vector<int> cores_;
  Late late_;
  pid_t owner_;  // a forked child has neither the thread nor a mutex that it could trust
  std::shared_ptr<Operation> last_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace pycomm::shm
