// The floating-point mode that reductions run in. Unnamed namespace: see elements.h.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace pycomm {
namespace {

// Denormals are kept, whatever mode the calling thread is in: torch can switch them off, for some
// threads.
class KeepDenormals {
 public:
#if defined(__SSE__)
  KeepDenormals() : saved_(_mm_getcsr()) {
    if (saved_ & kModes) _mm_setcsr(saved_ & ~kModes);
  }
  ~KeepDenormals() {
    if (saved_ & kModes) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kModes =
      0x8040 | 0x6000;  // flush-to-zero, denormals-are-zero, rounding
  unsigned saved_;
#elif defined(__aarch64__)
  KeepDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ & kModes) asm volatile("msr fpcr, %0" ::"r"(saved_ & ~kModes));
  }
  ~KeepDenormals() {
    if (saved_ & kModes) asm volatile("msr fpcr, %0" ::"r"(saved_));
  }

 private:
  static constexpr unsigned long kModes = (1ul << 24) | (3ul << 22);
  unsigned long saved_;
#endif
};

}  // namespace
}  // namespace pycomm
