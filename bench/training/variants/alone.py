"""Training without any synchronisation: what every other variant is compared with."""

from __future__ import annotations

from bench.training.jobs import Job
from bench.training.variants.base import Training, loop_step, variant

NO_SYNC = "no-sync"


@variant(NO_SYNC, learns_from="share")
def alone(job: Job) -> Training:
    """No synchronisation: each rank trains on its share, as if it were alone."""
    module = job.module()
    return Training(loop_step(module, module, job), module)
