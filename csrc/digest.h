// 64 bits that differ for different memory, at the speed at which memory is read.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fingerprint.h"

namespace pycomm {

// Word i goes to lane i mod 8, as a fingerprint cannot take a word before the last one is mixed in.
inline uint64_t digest(const char* data, size_t bytes) {
  constexpr size_t kLanes = 8;
  constexpr Fingerprint start("digest");
  std::array<Fingerprint, kLanes> lanes{start, start, start, start, start, start, start, start};
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t) * kLanes) {
    uint64_t words[kLanes] = {};
    std::memcpy(words, data + at, std::min(sizeof(words), bytes - at));
    for (size_t i = 0; i < kLanes; i++) lanes[i].add(words[i]);
  }
  Fingerprint all = start;
  all.add(bytes);
  for (const Fingerprint& lane : lanes) all.add(lane.value());
  return all.value();
}

}  // namespace pycomm
