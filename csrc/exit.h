// Ends the process's part in a job: tells a clean exit from a failed one.
#pragma once

#include <cstdint>

namespace pycomm {

// Calls `finalize` (for instance MPI_Finalize, which waits for all ranks) when the process exits
// with status 0, and never when it exits with another: then the launcher sees a process that failed
// and ends the job. Calling it a second time replaces the function. A forked child never finalizes.
void finalize_on_success(int (*finalize)());

}  // namespace pycomm
