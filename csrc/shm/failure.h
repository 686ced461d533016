// Why an operation could not be done; after any of these its board is unusable.
#pragma once

namespace pycomm::shm {

struct Failure {};
struct Mismatch : Failure {};     // ranks opened different operations
struct Interrupted : Failure {};  // a signal came in mid-operation
struct Stalled : Failure {        // the timeout passed
  explicit Stalled(int rank) : rank(rank) {}
  int rank;
};
struct Unreadable : Failure {  // reading the memory of a rank's process failed with this errno
  Unreadable(int rank, int error) : rank(rank), error(error) {}
  int rank, error;
};
struct Unreachable : Failure {};  // the other side of a message closed it, or its memory failed
struct Departed : Failure {
  explicit Departed(int rank) : rank(rank) {}
  int rank;
};
struct Died : Failure {};  // a rank of the communicator

}  // namespace pycomm::shm
