// The instruction levels that the loops are compiled for, each in a namespace of its own.
#pragma once

#include <utility>

#include "cpu/dropout.h"
#include "cpu/reduce.h"
#include "cpu/update.h"

#define PYCOMM_DECLARE_LEVEL(name)              \
  namespace pycomm::cpu::name {                 \
  const Loops& loops(int dtype, int op);        \
  const UpdateLoops& update_loops(int dtype);   \
  const DropoutLoops& dropout_loops(int dtype); \
  }
PYCOMM_DECLARE_LEVEL(plain)
#if defined(__x86_64__)
PYCOMM_DECLARE_LEVEL(avx2)
PYCOMM_DECLARE_LEVEL(avx512)
#endif
#undef PYCOMM_DECLARE_LEVEL
