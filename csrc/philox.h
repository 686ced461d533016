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

constexpr int kPhiloxRounds = 10;

// What is added to the halves of the key after a round.
constexpr uint32_t kPhiloxLow = 0x9e3779b9u, kPhiloxHigh = 0xbb67ae85u;

PYCOMM_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3,
                                uint32_t key_low, uint32_t key_high) {
  const uint64_t left = uint64_t(c0) * 0xd2511f53u, right = uint64_t(c2) * 0xcd9e8d57u;
  const uint32_t first = uint32_t(right >> 32) ^ c1 ^ key_low,
                 third = uint32_t(left >> 32) ^ c3 ^ key_high;
  c1 = uint32_t(right);
  c3 = uint32_t(left);
  c0 = first;
  c2 = third;
}

PYCOMM_INLINE Words4 philox(Words4 c, uint64_t key) {
  uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
  for (int round = 0; round < kPhiloxRounds; round++) {
    philox_round(c.at[0], c.at[1], c.at[2], c.at[3], low, high);
    low += kPhiloxLow;
    high += kPhiloxHigh;
  }
  return c;
}

// The counter whose four words are those of elements 4 * block … + 3 of a sample in a step.
PYCOMM_INLINE Words4 mask_counter(uint64_t step, uint32_t sample, uint32_t block) {
  return {{block, sample, uint32_t(step), uint32_t(step >> 32)}};
}

}  // namespace
}  // namespace pycomm
