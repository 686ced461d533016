// One large message between two processes: how sender and receiver agree on who copies.
//
//   offered ──receiver──▸ taken ▸ moving ──both copy pieces, both acknowledge──▸ free
//      └────sender─────▸ filling ▸ filled ──receiver copies, or keeps the slot──▸ returned ▸ free
//
// A receiver that comes takes the data straight from the sender's memory, and a sender that waits
// meanwhile helps: each piece is copied by who claims it first. A sender that finds nobody there
// fills a slot of its own instead and is done. The slot is the receiver's until it returns it.
//
// Memory-ordering rules. Every step of `state` releases what was written before it. `done` counts
// copied pieces (release) and who sees all of them (acquire) sees the data. A block is used anew
// only after both sides have acknowledged, or the receiver has returned the slot.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "shm/peer_memory.h"

namespace pycomm::shm {

enum class Stage : uint32_t {
  free,
  offered,
  taken,
  moving,
  acknowledged,  // by one side
  filling,
  filled,
  returned,
};

struct alignas(128) Block {
  static constexpr size_t kPieceBytes = size_t(256) << 10;

  std::atomic<Stage> stage;
  std::atomic<uint32_t> claimed, done;
  uint64_t bytes;
  Location source;
  Location target;

  Stage now() const { return stage.load(std::memory_order_acquire); }
  void go(Stage next) { stage.store(next, std::memory_order_release); }
  bool change(Stage from, Stage to) { return stage.compare_exchange_strong(from, to); }
  uint32_t pieces() const { return uint32_t((bytes + kPieceBytes - 1) / kPieceBytes); }
  bool complete() const { return done.load(std::memory_order_acquire) == pieces(); }
  void acknowledge() {
    if (!change(Stage::moving, Stage::acknowledged)) go(Stage::free);
  }

  // Copies all pieces that nobody has claimed yet, by copy(offset, bytes).
  template <class Copy>
  void copy_pieces(Copy copy) {
    while (claimed.load(std::memory_order_relaxed) < pieces()) {
      const uint32_t k = claimed.fetch_add(1);
      if (k >= pieces()) return;
      const size_t offset = k * kPieceBytes;
      copy(offset, std::min<size_t>(kPieceBytes, bytes - offset));
      done.fetch_add(1, std::memory_order_acq_rel);
    }
  }
};

}  // namespace pycomm::shm
