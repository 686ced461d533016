// 64 bits that differ for different calls: every rank must open an operation with the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pycomm {

class Fingerprint {
 public:
  constexpr explicit Fingerprint(std::string_view kind) {
    for (char c : kind) value_ = (value_ ^ uint8_t(c)) * 0x100000001b3u;  // FNV-1a
  }

  constexpr Fingerprint& add(uint64_t word) {  // splitmix64 (Steele et al., OOPSLA 2014)
    uint64_t z = value_ + 0x9e3779b97f4a7c15u + word;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    value_ = z ^ (z >> 31);
    return *this;
  }

  // What all collectives have; then the number of elements, or those of every rank's chunk.
  constexpr Fingerprint& call(int dtype, uint64_t op, int root) {
    return add(uint64_t(dtype)).add(op).add(uint64_t(root));
  }

  constexpr uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace pycomm
