// The instruction levels that this processor has.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/reduce.h"

namespace pycomm::test {

// Calls `run` once at each; no rank may be under way.
template <class Run>
void at_every_level(Run run) {
  const std::string usual = cpu::level();
  for (const char* level : {"plain", "avx2", "avx512"}) {
    try {
      cpu::use_level(level);
    } catch (const std::invalid_argument&) {
      continue;
    }
    run();
  }
  cpu::use_level(usual.c_str());
}

}  // namespace pycomm::test
