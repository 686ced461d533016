#include "fate.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

namespace pycomm {

int fate_of(int pid) {
  char text[1024];
  const int fd = open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC);
  const ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
  if (fd >= 0) close(fd);
  text[length > 0 ? length : 0] = 0;
  const char *name_end = strrchr(text, ')'), *last = strrchr(text, ' ');
  if (!name_end || !last) return kUnknownFate;
  const int status = atoi(last + 1);
  const bool ended = name_end[2] == 'Z' || name_end[2] == 'X';
  return status || ended ? status : kUnknownFate;
}

std::string in_words(int fate) {
  if (fate == kUnknownFate) return "died";
  if (WIFEXITED(fate))
    return "exited with status " + std::to_string(WEXITSTATUS(fate)) + " in the middle of the job";
  const int signal = WTERMSIG(fate);
  return "was killed by signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
}

}  // namespace pycomm
