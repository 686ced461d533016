// One large message between two processes: how sender and receiver agree on who copies.
//
//   offered ──receiver──▸ taken ▸ moving ──both copy pieces, both acknowledge──▸ free
//      └────sender─────▸ filling ▸ filled ──receiver copies, or: kept a while──▸ returned ▸ free
//
// A receiver that comes takes the data straight from the sender's memory, and a sender that waits
// meanwhile helps: each piece is copied by who claims it first. A sender that finds nobody there
// fills a slot of its own instead and is done. The slot is the receiver's until it returns it.
//
// `refused`: the receiver has closed the communicator. `failed`: one side cannot reach the other's
// memory. The side that did not say so sees it and frees the block.
//
// Memory-ordering rules. Every step of `stage` releases what was written before it. `done` counts
// copied pieces (release) and who sees all of them (acquire) sees the data. A block is used anew
// only after both sides have acknowledged, or the receiver has returned the slot.
#pragma once

#include <algorithm>
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
  kept,
  returned,
  refused,
  failed,
};

struct alignas(128) Block {
  std::atomic<Stage> stage;
  std::atomic<uint32_t> claimed, done;
  uint64_t bytes, piece_bytes;
  Location source;
  Location target;

  Stage now() const { return stage.load(std::memory_order_acquire); }
  void go(Stage next) { stage.store(next, std::memory_order_seq_cst); }
  bool change(Stage from, Stage to) { return stage.compare_exchange_strong(from, to); }
  // By the sender, before it offers: `shared` if it may help. Pieces are so large that the kernel's
  // part per call is small, so small that there is one for each side.
  void cut(bool shared) {
    const size_t quarter = (bytes / 4 + kPage - 1) / kPage * kPage;
    piece_bytes = shared ? std::clamp(quarter, 8 * kPage, 64 * kPage) : bytes;
  }
  bool ended_badly() const { return now() == Stage::refused || now() == Stage::failed; }
  uint32_t pieces() const { return uint32_t((bytes + piece_bytes - 1) / piece_bytes); }
  bool complete() const { return done.load(std::memory_order_acquire) == pieces(); }
  void acknowledge() {
    if (!change(Stage::moving, Stage::acknowledged)) go(Stage::free);
  }

  // The receiver does not want it: lets the sender know, or gives it its slot back.
  void refuse() {
    if (!change(Stage::offered, Stage::refused) && !change(Stage::filling, Stage::refused))
      change(Stage::filled, Stage::returned);
  }

  // Copies all pieces that nobody has claimed yet, by copy(offset, bytes).
  template <class Copy>
  void copy_pieces(Copy copy) {
    const size_t per = piece_bytes, count = pieces();
    while (claimed.load(std::memory_order_relaxed) < count) {
      const uint32_t k = claimed.fetch_add(1);
      if (k >= count) return;
      copy(k * per, std::min(per, bytes - k * per));
      done.fetch_add(1);
    }
  }

 private:
  static constexpr size_t kPage = 4096;
};

}  // namespace pycomm::shm
