// Records from one process to another: a ring in shared memory with one writer and one reader.
//
// Memory-ordering rules. A record is published by its mark, which the reader polls, so that a small
// record is seen with the one cache line that carries it. A mark is the number of the
// record's first granule in the endless row of all granules, plus 1: no two laps share one. As data
// could look like a mark, the reader clears the first word of every granule before it gives them
// back by `head`. Both are stored sequentially consistently: see Doorbell.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pycomm::shm {

struct Record {
  std::atomic<uint64_t> mark;
  uint32_t granules;
  uint32_t kind;  // 0 fills up the end of a lap
};

struct RingMemory {
  static constexpr size_t kGranule = 64, kGranules = 2048;
  alignas(128) std::atomic<uint64_t> head;  // granules that the reader has given back
  alignas(128) char data[kGranules * kGranule];

  Record* at(uint64_t granule) {
    return reinterpret_cast<Record*>(data + granule % kGranules * kGranule);
  }
};

class RingWriter {
 public:
  explicit RingWriter(RingMemory* memory) : memory_(memory) {}

  // Room for a record of at most kGranules / 4 granules, to be filled and published; null: full.
  Record* reserve(size_t bytes) {
    const uint64_t need = (bytes + RingMemory::kGranule - 1) / RingMemory::kGranule,
                   left = RingMemory::kGranules - tail_ % RingMemory::kGranules,
                   skip = need > left ? left : 0;
    if (!has_room(need + skip)) return nullptr;
    if (skip) {
      Record* filler = memory_->at(tail_);
      filler->granules = uint32_t(skip);
      filler->kind = 0;
      publish(filler);
    }
    Record* record = memory_->at(tail_);
    record->granules = uint32_t(need);
    return record;
  }

  void publish(Record* record) {
    const uint64_t mark = tail_ + 1;
    tail_ += record->granules;
    record->mark.store(mark, std::memory_order_seq_cst);
  }

 private:
  bool has_room(uint64_t need) {
    if (tail_ + need - head_ <= RingMemory::kGranules) return true;
    head_ = memory_->head.load(std::memory_order_acquire);
    return tail_ + need - head_ <= RingMemory::kGranules;
  }

  RingMemory* memory_;
  uint64_t tail_ = 0, head_ = 0;
};

class RingReader {
 public:
  explicit RingReader(RingMemory* memory) : memory_(memory) {}

  // The oldest record that was not dropped yet; null if there is none.
  Record* front() {
    Record* record = memory_->at(head_);
    if (record->mark.load(std::memory_order_acquire) != head_ + 1) return nullptr;
    if (record->kind) return record;
    drop(record);
    return front();
  }

  void drop(Record* record) {
    const uint64_t end = head_ + record->granules;
    for (; head_ < end; head_++) memory_->at(head_)->mark.store(0, std::memory_order_relaxed);
    memory_->head.store(head_, std::memory_order_seq_cst);
  }

 private:
  RingMemory* memory_;
  uint64_t head_ = 0;
};

}  // namespace pycomm::shm
