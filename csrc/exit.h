// Ends the process's part in a job: tells a clean exit from a failed one.
#pragma once

#include <cstdint>

namespace pycomm {

// Calls `finalize` (for instance MPI_Finalize, which waits for all ranks) when the process exits
// with status 0, and never when it exits with another: then the launcher sees a process that failed
// and ends the job. Calling it a second time replaces the function. A forked child never finalizes.
void finalize_on_success(int (*finalize)());

// Calls `abort` (for instance MPI_Abort) with `communicator`'s handle and the status when a process
// that finalizes on success exits with a failure: for launchers that do not see it on every host.
void abort_on_failure(int (*abort)(void*, int), void* communicator);

}  // namespace pycomm
