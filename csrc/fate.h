// How a process ended that is no child of this one.
#pragma once

#include <string>

namespace pycomm {

constexpr int kUnknownFate = -1;

// The wait status of a process that is ending or has ended, if it can be known.
int fate_of(int pid);

std::string in_words(int fate);

}  // namespace pycomm
