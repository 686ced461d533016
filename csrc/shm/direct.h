// Collectives over shared memory. Reductions add in rank order, whatever the path.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/reduce.h"
#include "shm/board.h"

namespace pycomm::shm {

// Offsets have size + 1 entries: the chunk of rank r is [offsets[r], offsets[r + 1]).
// Memory belongs to the operation until it returns. All throw Mismatch, Stalled, Departed.

void barrier(Board&, uint64_t fingerprint, Idle&);

// `count` elements at `data`, in place.
void all_reduce(Board&, uint64_t fingerprint, void* data, size_t count, cpu::Reduction, Idle&);

// `count` elements at `data`, added in rank order into the root's; the others' stay as they are.
void reduce(Board&, uint64_t fingerprint, void* data, size_t count, cpu::Reduction, int root,
            Idle&);

// `bytes` at `data`: read on the root, written on the others.
void broadcast(Board&, uint64_t fingerprint, void* data, size_t bytes, int root, Idle&);

// This rank's chunk at `in`, everyone's at `out`; offsets in bytes. `in` may be this rank's chunk
// of `out`.
void all_gather(Board&, uint64_t fingerprint, const void* in, void* out, const size_t* offsets,
                Idle&);

// All chunks at `in`, this rank's at `out`; offsets in elements.
void reduce_scatter(Board&, uint64_t fingerprint, const void* in, void* out, const size_t* offsets,
                    cpu::Reduction, Idle&);

}  // namespace pycomm::shm
