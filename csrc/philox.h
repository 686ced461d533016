// Philox4x32-10: random numbers that are a function of a counter and a key, so that any of them can
// be had without those before it (Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy
// as 1, 2, 3, SC 2011, section 3.3). One definition for host and device.
#pragma once

#include "floats.h"

namespace pycomm {
namespace {

struct Words4 {
  uint32_t at[4];
};

PYCOMM_INLINE Words4 philox_round(Words4 c, uint32_t key0, uint32_t key1) {
  const uint64_t left = uint64_t(c.at[0]) * 0xd2511f53u, right = uint64_t(c.at[2]) * 0xcd9e8d57u;
  return {{uint32_t(right >> 32) ^ c.at[1] ^ key0, uint32_t(right),
           uint32_t(left >> 32) ^ c.at[3] ^ key1, uint32_t(left)}};
}

PYCOMM_INLINE Words4 philox(Words4 counter, uint64_t key) {
  uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; round++) {
    counter = philox_round(counter, key0, key1);
    key0 += 0x9e3779b9u;  // the golden ratio
    key1 += 0xbb67ae85u;  // the square root of 3
  }
  return counter;
}

// The words of elements 4 * block … + 3 of a sample in a step.
PYCOMM_INLINE Words4 mask_words(uint64_t key, uint64_t step, uint32_t sample, uint32_t block) {
  return philox({{block, sample, uint32_t(step), uint32_t(step >> 32)}}, key);
}

}  // namespace
}  // namespace pycomm
