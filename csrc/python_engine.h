// An engine as Python has it: with the objects whose memory its operations use.
#pragma once

#include <deque>
#include <memory>
#include <utility>

#include "bindings.h"
#include "shm/engine.h"

namespace pycomm {

struct PythonEngine {
  PythonEngine(shm::Board& board, std::vector<int> cores);

  // `keep` is let go of after the operation, on a thread that holds the interpreter lock: at the
  // next submission or wait, or with the engine.
  std::shared_ptr<shm::Operation> submit(shm::Collective collective, std::string kind,
                                         std::string note, nb::handle keep, uint64_t record);
  void let_go();

  shm::Board& board;
  std::deque<std::pair<std::shared_ptr<shm::Operation>, nb::object>> kept;
  shm::Engine engine;  // destroyed first: then nothing uses what is kept
};

}  // namespace pycomm
