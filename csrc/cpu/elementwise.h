// What loops over arrays share. Unnamed namespace: see elements.h.
#pragma once

// Outputs may be inputs, element on element: no iteration depends on another.
#if defined(__clang__)
#define PYCOMM_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define PYCOMM_ELEMENTWISE _Pragma("GCC ivdep")
#endif

namespace pycomm {
namespace {

// An element of an array that may lie at any address.
template <class T>
struct [[gnu::packed]] Unaligned {
  T value;
};

}  // namespace
}  // namespace pycomm
