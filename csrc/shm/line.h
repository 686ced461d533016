// What a rank, or a group of ranks, publishes when it opens an operation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shm/counter.h"
#include "shm/slab.h"

namespace pycomm::shm {

// Rounded up, so that two pieces share no cache lines, nor pairs of lines, which are fetched
// together.
constexpr size_t in_lines(size_t bytes) { return (bytes + 127) / 128 * 128; }

// How a rank offers its data in an opening.
enum class Offer : uint32_t { nothing, target, line, staged, slab, remote, ordinary };

// What an opening found out: all data readable where `Board::source` says, in staging (no closing
// is needed) or in place (barrier() before anyone returns); some of it in ordinary memory that can
// be read (likewise, but by `Board::take` only); or to be moved through staging piece by piece.
enum class Path { staged, in_place, remote, pipelined };

// What some ranks have in common: their call, and the paths that all their offers allow. All must
// give the same fingerprint, and those that know the detail (not 0) the same detail.
struct Common {
  uint64_t fingerprint, detail;
  bool alike, staged, in_place, remote;

  static Common of(uint64_t fingerprint, uint64_t detail, Offer o, bool reads_others) {
    const bool nothing = o == Offer::nothing || o == Offer::target;
    return {.fingerprint = fingerprint,
            .detail = detail,
            .alike = true,
            .staged = nothing || o == Offer::line || o == Offer::staged,
            .in_place = nothing || o == Offer::slab,
            .remote = reads_others && o != Offer::ordinary};
  }
  void add(const Common& other) {
    const bool same_detail = !detail || !other.detail || detail == other.detail;
    alike = alike && other.alike && same_detail && fingerprint == other.fingerprint;
    detail |= other.detail;
    staged = staged && other.staged;
    in_place = in_place && other.in_place;
    remote = remote && other.remote;
  }
  Path path() const {
    return staged     ? Path::staged
           : in_place ? Path::in_place
           : remote   ? Path::remote
                      : Path::pipelined;
  }
};

// Tiny data begin in the first half, to be there with the one cache line that announces them.
struct alignas(128) Line {
  static constexpr size_t kPayloadBytes = 80;
  Counter epoch;
  Common common;
  Offer offer;
  uint32_t staged_at;  // where in its ring this rank stages what it brings
  union {
    Place place;  // of Offer::target, slab and remote, whose address is the offset
    alignas(8) char payload[kPayloadBytes];  // of Offer::line
  };
};
static_assert(sizeof(Line) == 128);

}  // namespace pycomm::shm
