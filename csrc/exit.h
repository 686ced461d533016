// Ends the process's part in a job: tells a clean exit from a failed one.
#pragma once

#include <string>

namespace pycomm {

// Calls `finalize` (for instance MPI_Finalize, which waits for all ranks) when the process exits
// with status 0, and never when it exits with another: then the launcher sees a process that failed
// and ends the job. Calling it a second time replaces the function. A forked child never finalizes.
void finalize_on_success(int (*finalize)());

// Never calls `finalize`: it would wait for a process that died. (Open MPI's did, now and then.)
void never_finalize();

// Sets how to end the job: `abort` (for instance MPI_Abort) with `communicator`'s handle and a
// code.
void abort_by(int (*abort)(void*, int), void* communicator);

// Ends the job when a process that finalizes on success exits with a failure, with its status: for
// launchers that do not see it on every host.
void abort_on_failure();

// Ends the job with `code`, and says `why` on stderr, if this process is still there after
// `seconds`; whatever its threads do.
void abort_after(double seconds, int code, std::string why);

}  // namespace pycomm
