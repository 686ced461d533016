#include "shm/engine.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "flight.h"

namespace pycomm::shm {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr Seconds kPoll{0.05};  // a waiting caller looks for signals this often

// Signals are for the threads that run Python.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// Has no effect where the process may not use all of them.
void run_on(std::thread& thread, const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
}

}  // namespace

// What the engine's thread does besides waiting: nothing that needs the interpreter.
struct Engine::Background : Idle {
  explicit Background(Engine& engine) : engine(engine) { background = true; }
  void poll() override {
    if (engine.shared_->stopping) throw Interrupted{};
  }
  void late(int rank, int peer, double waited_s) override { engine.late_(rank, peer, waited_s); }
  Engine& engine;
};

Engine::Engine(Board& board, std::vector<int> cores, Late late)
    : board_(board),
      cores_(std::move(cores)),
      late_(late),
      owner_(getpid()),
      shared_(std::make_unique<Shared>()) {}

Engine::~Engine() {
  stop();
  if (in_forked_child()) static_cast<void>(shared_.release());
}

void Engine::submit(std::shared_ptr<Operation> operation) {
  {
    std::lock_guard lock(shared_->mutex);
    if (!shared_->thread.joinable() && !shared_->stopping) start();
    board_.asynchronous(1);
    last_ = operation;
    shared_->queue.push_back(std::move(operation));
  }
  shared_->to_do.notify_one();
  if (shared_->stopping) stop();
}

void Engine::start() {
  SignalsBlocked here;
  shared_->thread = std::thread([this] { work(); });
  run_on(shared_->thread, cores_);
}

void Engine::work() {
  Waits::leave_out_this_thread();
  Background idle(*this);
  Lock lock(shared_->mutex);
  while (!shared_->stopping) {
    if (next_is_free())
      run_next(lock, idle);
    else
      shared_->to_do.wait(lock);
  }
}

bool Engine::wait(const Operation& operation, std::optional<double> timeout_s, Idle& idle) {
  if (operation.finished()) return true;
  if (in_forked_child())
    throw std::runtime_error("a forked child cannot wait for its parent's operations");
  const auto start = Clock::now();
  Lock lock(shared_->mutex);
  while (!operation.finished()) {
    if (!timeout_s && next_is_free()) {
      run_next(lock, idle);
      continue;
    }
    const Seconds left = Seconds(timeout_s.value_or(INFINITY)) - (Clock::now() - start);
    if (left <= Seconds(0)) return false;
    idle.park();
    shared_->done.wait_for(lock, std::min(left, kPoll));
    lock.unlock();  // poll() may wait for the interpreter, whose holder may wait for the mutex
    idle.poll();
    lock.lock();
  }
  return true;
}

void Engine::run_next(Lock& lock, Idle& idle) {
  const auto operation = std::move(shared_->queue.front());
  shared_->queue.pop_front();
  shared_->running = true;
  if (shared_->failed) operation->error = shared_->failed->error;
  if (shared_->failed) operation->notes = shared_->failed->notes;
  lock.unlock();
  const auto thrown = operation->error ? nullptr : run(*operation, idle);
  lock.lock();
  shared_->running = false;
  if (operation->error && !shared_->failed) shared_->failed = operation;
  finish(*operation);
  if (!idle.background && next_is_free()) shared_->to_do.notify_one();
  if (thrown) std::rethrow_exception(thrown);
}

// Returns what is for the caller alone, who runs Python: an interrupt, for instance.
std::exception_ptr Engine::run(Operation& operation, Idle& idle) {
  try {
    operation.collective(idle);
  } catch (const Mismatch&) {
    operation.error = std::current_exception();
    operation.notes = board_.exchange_notes(operation.note, idle);
  } catch (const Failure&) {
    operation.error = std::current_exception();
  } catch (...) {
    const auto thrown = std::current_exception();
    operation.error = idle.background ? thrown : std::make_exception_ptr(Interrupted{});
    return idle.background ? nullptr : thrown;
  }
  return nullptr;
}

void Engine::finish(Operation& operation) {
  operation.collective = nullptr;
  if (operation.record) {
    const auto state = operation.error ? flight::State::failed : flight::State::done;
    flight::Recorder::instance().end(operation.record, state, flight::now_ns());
  }
  board_.asynchronous(-1);
  operation.done.store(true, std::memory_order_release);
  shared_->done.notify_all();
}

std::shared_ptr<Operation> Engine::failed() const {
  std::lock_guard lock(shared_->mutex);
  return shared_->failed;
}

void Engine::stop() {
  if (in_forked_child()) return;
  shared_->stopping = true;
  {
    std::lock_guard lock(shared_->mutex);
  }
  shared_->to_do.notify_one();
  if (shared_->thread.joinable()) shared_->thread.join();
  std::lock_guard lock(shared_->mutex);
  for (; !shared_->queue.empty(); shared_->queue.pop_front()) {
    shared_->queue.front()->error = std::make_exception_ptr(Interrupted{});
    finish(*shared_->queue.front());
  }
}

}  // namespace pycomm::shm
