// Threads that the program does not notice.
#pragma once

#include <signal.h>

#include <thread>
#include <utility>

namespace pycomm {

// Runs `function` on a detached thread that takes no signals: they are for the program's own.
template <class Function>
void start_quiet_thread(Function function) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread(std::move(function)).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace pycomm
