// Collectives in which ranks bring or take different parts: a root's, or one for every peer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "shm/board.h"

namespace pycomm::shm {

// Memory belongs to the operation until it returns. All throw Mismatch, before any memory changes,
// Stalled and Departed.

// `bytes` of each rank at `in`; all of them, in rank order, at the root's `out`. The root's `in`
// may be its chunk of `out`; the others' `out` is not used.
void gather(Board&, uint64_t fingerprint, const void* in, void* out, size_t bytes, int root, Idle&);

struct Chunk {
  char* data;
  size_t bytes;
};

// All chunks at the root's `in`, this rank's at `out`. The root's `out` may be its chunk of `in`;
// the others' `in` is not used. A rank that does not know what comes gives `allocate`, which makes
// `out` from the header of the root's call.
void scatter(Board&, Call, const void* in, Chunk out,
             const std::function<Chunk(const int64_t* header)>& allocate, int root, Idle&);

// Where the chunks of an all_to_all lie, in bytes.
struct Traffic {
  const size_t* sent;      // size + 1 offsets into `in`: the chunk for rank r is [r, r + 1)
  const size_t* received;  // size + 1 offsets into `out`: the chunk from rank r is [r, r + 1)
  const size_t* starts;    // where the chunk for this rank begins in what rank r offers
  size_t longest;          // the longest chunk between two ranks; the same on all
};

// What rank r offers of the chunks that it sends: all but its own, where that is the first or last.
struct Offered {
  Offered(const size_t* offsets, int r, int size)
      : begin(r == 0 ? offsets[1] : 0), end(r == size - 1 ? offsets[r] : offsets[size]) {}
  // Of equal chunks.
  Offered(size_t chunk, int r, int size)
      : begin(r == 0 ? chunk : 0), end(chunk * size_t(r == size - 1 ? r : size)) {}
  size_t bytes() const { return end > begin ? end - begin : 0; }
  size_t begin, end;
};

// Chunks at `in` for every rank, chunks from every rank at `out`, which must not overlap `in`.
void all_to_all(Board&, uint64_t fingerprint, const void* in, void* out, const Traffic&, Idle&);

}  // namespace pycomm::shm
