// What the short ways tell the flight recorder, in its texts.
#pragma once

#include "bindings.h"

namespace pycomm {

// A call by codes: `kind` is a Board::Kind, kSend or kReceive.
struct Recorded {
  static constexpr size_t kSend = shm::Board::kKinds, kReceive = kSend + 1, kKinds = kSend + 2;
  size_t kind, bytes;
  int dtype = -1, op = -1, peer = flight::Call::kNobody;
  int64_t tag = 0;

  // Makes up the recorder's texts when it is first called.
  flight::Call call() const;
};

extern const char* const kKindNames[Recorded::kKinds];
extern const char* const kOpNames[8];
extern const char* const kDtypeNames[17];

// Notes the call site when a wait becomes long: finding it takes longer than many an operation.
class RecordedIdle : public GilIdle {
 public:
  explicit RecordedIdle(flight::Flight* flight) : flight_(flight) {}
  void park() override {
    if (flight_ && has_lock()) flight_->came_from(recorded_site());
    GilIdle::park();
  }

 private:
  flight::Flight* flight_;
};

}  // namespace pycomm
