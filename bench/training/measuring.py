"""Trains each job with every variant: verify each, time all in turn, and say what was wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import pycomm
from bench.peers import UnavailableError
from bench.peers.base import repeated, waited_for
from bench.ranks import Ranks
from bench.sampling import Plan, collect
from bench.training import parity
from bench.training.footprint import footprint
from bench.training.jobs import Job
from bench.training.parity import OneProcess
from bench.training.results import Checked, Trained, compared, trained
from bench.training.variants import VARIANTS, Training, Variant

_Tried = tuple[Training, Checked]


class Measuring:
    """One run; all ranks make the same calls in the same order.

    Attributes:
        missing: variant → why it is not measured.
    """

    def __init__(self, ranks: Ranks, variants: Sequence[str], mpi: str, plan: Plan, plant: bool):
        self._ranks = ranks
        self._variants = [VARIANTS[name] for name in variants]
        self._mpi, self._plan, self._plant = mpi, plan, plant
        self.missing: dict[str, str] = {}

    def measure(self, job: Job) -> Iterator[Trained]:
        """Yield the records of one job, a variant each; say once who cannot take part."""
        one = OneProcess(job)
        ready: dict[str, _Tried] = {}
        for variant in self._variants:
            tried = self._agreed(variant, lambda variant=variant: self._checked(variant, job, one))
            if tried:
                ready[variant.name] = tried
        if not ready:
            return
        wait = torch.cuda.synchronize if job.device == "cuda" else None
        batches = {
            name: repeated(waited_for(training.step, wait)) for name, (training, _) in ready.items()
        }
        samples = collect(batches, 1, self._ranks, self._plan)
        yield from compared(
            [
                trained(job, name, self._mpi, checked, samples[name])
                for name, (_, checked) in ready.items()
            ]
        )

    def _checked(self, variant: Variant, job: Job, one: OneProcess) -> _Tried:
        """Return a variant that made its first steps, and what is known of it then."""
        memory = footprint(job.device)
        with memory:
            training = variant.build(job)
            for _ in range(parity.STEPS):
                before = self._ranks.comm.stats.bytes_sent
                training.step()
            sent = self._ranks.comm.stats.bytes_sent - before
        if self._plant and self._ranks.rank == self._ranks.size - 1:
            parity.falsify(training)
        off = one.off(variant, training)
        wire = sent if training.wire_bytes is None else training.wire_bytes
        return training, Checked(off, int(not off <= variant.most_off), wire, memory.nbytes)

    def _agreed(self, variant: Variant, attempt: Callable[[], _Tried]) -> _Tried | None:
        """Return an attempt with the largest of all ranks' numbers; None if one cannot."""
        result, problem = None, ""
        try:
            result = attempt()
        except (pycomm.UnsupportedError, UnavailableError) as error:
            problem = str(error)
        everyone = self._ranks.gathered((problem, result[1] if result else None))
        problems = [p for p, _ in everyone if p]
        if result is None or problems:
            self._skip(variant.name, problems[0])
            return None
        return result[0], _largest([checked for _, checked in everyone])

    def _skip(self, name: str, reason: str) -> None:
        if self.missing.get(name) != reason:
            self.missing[name] = reason
            if self._ranks.rank == 0:
                print(f"# not measured: {name}: {reason}", flush=True)


def _largest(everyone: Sequence[Any]) -> Checked:
    peaks = [c.peak_bytes for c in everyone]
    return Checked(
        off=max(c.off for c in everyone),
        wrong=sum(c.wrong for c in everyone),
        wire_bytes=max(c.wire_bytes for c in everyone),
        peak_bytes=None if None in peaks else max(peaks),
    )
