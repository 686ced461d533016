"""Trains each job with every variant: verify each, time all in turn, and say what was wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

import pycomm
from bench.peers import UnavailableError
from bench.peers.base import repeated, waited_for
from bench.ranks import Ranks
from bench.sampling import Plan, Samples, collect
from bench.training import parity
from bench.training.jobs import Job
from bench.training.parity import OneProcess
from bench.training.timed import Timed
from bench.training.variants import Training, Variant

J = TypeVar("J", bound=Job)
Checked = TypeVar("Checked")
"""What a rank knows of a variant after its first steps."""
Known = TypeVar("Known")
"""What all ranks know of it before it is timed."""


class Measuring(ABC, Generic[J, Checked, Known]):
    """One run; all ranks make the same calls in the same order.

    A subclass says what is found out of a variant beside its time.

    Attributes:
        missing: variant → why it is not measured.
    """

    def __init__(
        self, ranks: Ranks, variants: Sequence[Variant], mpi: str, plan: Plan, plant: bool
    ):
        self._ranks, self._variants = ranks, variants
        self._mpi, self._plan, self._plant = mpi, plan, plant
        self.missing: dict[str, str] = {}

    def measure(self, job: J) -> Iterator[Timed]:
        """Yield the records of one job, a variant each; say once who cannot take part."""
        one = OneProcess(job, self._variants)
        steps: dict[str, Callable[[], Any]] = {}
        known: dict[str, Known] = {}
        for variant in self._variants:
            tried = self._agreed(variant, lambda variant=variant: self._tried(variant, job, one))
            if tried:
                training, everyone = tried
                steps[variant.name] = training.step
                known[variant.name] = self._known(training, everyone)
        if not known:
            return
        steps |= self._yardsticks(job)
        wait = torch.cuda.synchronize if job.device == "cuda" else None
        batches = {name: repeated(waited_for(step, wait)) for name, step in steps.items()}
        yield from self._records(job, known, collect(batches, 1, self._ranks, self._plan))

    @abstractmethod
    def _tried(self, variant: Variant, job: J, one: OneProcess) -> tuple[Training, Checked]:
        """Return a variant that made its first steps, and what this rank knows of it then."""

    @abstractmethod
    def _known(self, training: Training, everyone: Sequence[Checked]) -> Known:
        """Return what is known of a variant that all ranks have tried; collective."""

    @abstractmethod
    def _records(
        self, job: J, known: Mapping[str, Known], samples: Mapping[str, Samples]
    ) -> Sequence[Timed]:
        """Return a record for each variant."""

    def _yardsticks(self, job: J) -> dict[str, Callable[[], Any]]:
        """Return what else is timed in turn with the variants, by name."""
        return {}

    def _verified(self, variant: Variant, training: Training, one: OneProcess) -> tuple[float, int]:
        """Return how far weights are off after the first steps, and 1 if that is too far."""
        if self._plant and self._ranks.rank == 0:
            parity.falsify(training)
        off = one.off(variant, training)
        return off, int(not off <= variant.most_off)

    def _agreed(
        self, variant: Variant, attempt: Callable[[], tuple[Training, Checked]]
    ) -> tuple[Training, list[Checked]] | None:
        """Return an attempt with what every rank knows of it; None if a rank cannot."""
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
        return result[0], [checked for _, checked in everyone]

    def _skip(self, name: str, reason: str) -> None:
        if self.missing.get(name) != reason:
            self.missing[name] = reason
            if self._ranks.rank == 0:
                print(f"# not measured: {name}: {reason}", flush=True)
