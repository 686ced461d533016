#include "exit.h"

#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "quiet_thread.h"

namespace pycomm {
namespace {

int (*registered)() = nullptr;
pid_t owner = 0;
int (*end_job)(void*, int) = nullptr;
void* everyone = nullptr;
bool may_finalize = true;
bool failure_ends_job = false;

// What this process wrote last is still on its way through the launcher.
constexpr useconds_t kLastWordsUs = 250'000;

// Python has no hook that knows the exit status: atexit runs before it is decided, and SystemExit
// passes no excepthook. The C library's on_exit does.
void at_exit(int status, void*) {
  if (getpid() != owner) return;
  if (status == 0) {
    if (may_finalize) registered();
  } else if (failure_ends_job && end_job) {
    usleep(kLastWordsUs);
    end_job(everyone, status);
  }
}

}  // namespace

void finalize_on_success(int (*finalize)()) {
  if (!registered) on_exit(at_exit, nullptr);
  registered = finalize;
  owner = getpid();
}

void never_finalize() { may_finalize = false; }

void abort_by(int (*abort)(void*, int), void* communicator) {
  end_job = abort;
  everyone = communicator;
}

void abort_on_failure() { failure_ends_job = true; }

void abort_after(double seconds, int code, std::string why) {
  start_quiet_thread([=] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    if (write(STDERR_FILENO, why.data(), why.size()) > 0) usleep(kLastWordsUs);
    end_job ? void(end_job(everyone, code)) : _exit(code);
  });
}

}  // namespace pycomm
