"""Measures variants that share the samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.sampling import Samples
from bench.training import parity
from bench.training.footprint import footprint
from bench.training.jobs import Job
from bench.training.measuring import Measuring
from bench.training.parity import OneProcess
from bench.training.results import Checked, Trained, compared, trained
from bench.training.variants import Training, Variant


class DataParallelMeasuring(Measuring[Job, Checked, Checked]):
    """Finds out what a variant sends and what memory it takes."""

    def _tried(self, variant: Variant, job: Job, one: OneProcess) -> tuple[Training, Checked]:
        memory = footprint(job.device)
        with memory:
            training = variant.build(job)
            for _ in range(parity.STEPS):
                before = self._ranks.comm.stats.bytes_sent
                training.step()
            sent = self._ranks.comm.stats.bytes_sent - before
        off, wrong = self._verified(variant, training, one)
        wire = sent if training.wire_bytes is None else training.wire_bytes
        return training, Checked(off, wrong, wire, memory.nbytes)

    def _known(self, training: Training, everyone: Sequence[Any]) -> Checked:
        """Return the largest of all ranks' numbers."""
        peaks = [c.peak_bytes for c in everyone]
        return Checked(
            off=max(c.off for c in everyone),
            wrong=sum(c.wrong for c in everyone),
            wire_bytes=max(c.wire_bytes for c in everyone),
            peak_bytes=None if None in peaks else max(peaks),
        )

    def _records(
        self, job: Job, known: Mapping[str, Checked], samples: Mapping[str, Samples]
    ) -> list[Trained]:
        found = [trained(job, name, self._mpi, k, samples[name]) for name, k in known.items()]
        return compared(found)
