// Where in the user's program a call was made.
#pragma once

#include <string>
#include <string_view>

namespace pycomm {

// The folder of the package, with a slash at its end: frames of files in it are not the user's.
void know_package(const std::string& folder);

bool in_package(std::string_view file);

// File and line of the innermost frame outside the package; for threads that run Python.
std::string call_site();

}  // namespace pycomm
