// Where kernels on several GPUs meet, block b of every rank with block b of all others.
//
// A rank has a board in its own memory, and all others have it mapped. To meet,
// 1. all threads of the block finish what comes before;
// 2. thread r writes the number of the meeting, the epoch, onto rank r's board, where this rank has
//    a counter: a release at system scope, so that rank r sees all that the block wrote before;
// 3. thread r reads rank r's counter on its own board until it is at the epoch: an acquire at
//    system scope, so that this block sees all that rank r's block wrote before its 2.;
// 4. all threads go on together.
//
// Counters only grow, and nothing is ever reset. A peer may be one meeting ahead, but no more: what
// is left for it on a set stays until the meeting after the next one. So there are two sets, in
// turn. The epoch is in the board, too: a launch that is replayed goes on where the last one ended.
//
// Blocks with the same number wait for each other, and for nobody else. All blocks of a grid must
// therefore run at the same time: on all ranks it has as many blocks, at most kMostBlocks, and no
// more than there are multiprocessors, each of which has room for at least one.
//
// Nobody waits for ever: a rank that is not there in time is named on the board and to the host,
// and from then on this block of this rank meets nobody, at once.
#pragma once

#include "cuda/grid.h"

#ifndef __CUDACC__
#include <sched.h>
#include <time.h>
#endif

namespace pycomm::cuda {

constexpr int kMostRanks = 32;
constexpr int kMostBlocks = 64;
constexpr int kSlotBytes = 8192;

// What one block of one rank has; of what is not of a set, only that block knows.
struct alignas(128) Board {
  uint64_t epoch;  // of its last meeting
  uint64_t late;   // 1 + a rank that did not come; 0: all came
  alignas(128) uint64_t arrived[2][kMostRanks];
  alignas(128) char slot[2][kSlotBytes];  // data for peers; theirs until the meeting after the next
};

static_assert(sizeof(Board) == 128 + 2 * sizeof(uint64_t) * kMostRanks + 2 * kSlotBytes, "packed");

// The ranks that meet. Boards are at the addresses of block 0's, as they are mapped here.
struct Group {
  int64_t rank, ranks;
  uint64_t patience;  // nanoseconds
  uint64_t late;      // the address of the host's copy of Board::late
  uint64_t boards[kMostRanks];
};

#ifdef __CUDACC__
__device__ inline void store_release(uint64_t* to, uint64_t x) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "l"(x)
               : "memory");
}
__device__ inline uint64_t load_acquire(const uint64_t* from) {
  uint64_t x;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];"
               : "=l"(x)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return x;
}
__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
__device__ inline void let_others_run() {}
#else
inline void store_release(uint64_t* to, uint64_t x) { __atomic_store_n(to, x, __ATOMIC_RELEASE); }
inline uint64_t load_acquire(const uint64_t* from) {
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline uint64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return uint64_t(now.tv_sec) * 1000000000u + uint64_t(now.tv_nsec);
}
inline void let_others_run() { sched_yield(); }
#endif

class Meeting {
 public:
  __device__ explicit Meeting(const Group& group)
      : group_(group), mine_(board(group.rank)), epoch_(mine_.epoch), together_(mine_.late == 0) {}

  // All threads of the block call it, and may use what they find only if it returns true.
  __device__ __forceinline__ bool meet() {
    __shared__ uint64_t late;
    if (!together_) return false;
    const int peer = int(threadIdx.x);
    const bool meets = peer < group_.ranks;
    epoch_++;
    __syncthreads();
    if (peer == 0) late = 0, mine_.epoch = epoch_;
    if (meets) store_release(&board(peer).arrived[epoch_ % 2][group_.rank], epoch_);
    __syncthreads();
    if (meets && !comes(peer)) late = uint64_t(peer) + 1;
    __syncthreads();
    together_ = late == 0;
    if (!together_ && peer == 0) tell(late);
    return together_;
  }

  // Where a rank leaves data for its peers before the next meeting.
  __device__ char* next_slot(int64_t rank) const { return board(rank).slot[(epoch_ + 1) % 2]; }

 private:
  __device__ Board& board(int64_t rank) const {
    return reinterpret_cast<Board*>(group_.boards[rank])[blockIdx.x];
  }

  // Whether the peer comes in time.
  __device__ __forceinline__ bool comes(int peer) const {
    constexpr int looks = 16;  // between two at the clock
    const uint64_t* counter = &mine_.arrived[epoch_ % 2][peer];
    if (load_acquire(counter) >= epoch_) return true;
    const uint64_t start = nanoseconds();
    do {
      for (int k = 0; k < looks; k++) {
        if (load_acquire(counter) >= epoch_) return true;
        let_others_run();
      }
    } while (nanoseconds() - start < group_.patience);
    return false;
  }

  __device__ void tell(uint64_t late) {
    mine_.late = late;
    store_release(reinterpret_cast<uint64_t*>(group_.late), late);
  }

  const Group& group_;
  Board& mine_;
  uint64_t epoch_;
  bool together_;
};

}  // namespace pycomm::cuda
