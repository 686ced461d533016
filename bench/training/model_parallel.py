"""Measures variants that share a model: every rank trains its part with all samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.sampling import Samples
from bench.training import parity
from bench.training.activations import activation_bytes
from bench.training.bound import bound_step
from bench.training.busy import idle_percent
from bench.training.jobs import PipelineJob
from bench.training.measuring import Measuring
from bench.training.parity import OneProcess
from bench.training.pipelined import Checked, Known, Pipelined, compared, pipelined
from bench.training.variants import Training, Variant

_BOUND = "bound"


class ModelParallelMeasuring(Measuring[PipelineJob, Checked, Known]):
    """Finds out how long ranks idle, what they keep, and what a pipeline has to take at least."""

    def _tried(
        self, variant: Variant, job: PipelineJob, one: OneProcess
    ) -> tuple[Training, Checked]:
        training = variant.build(job)
        for _ in range(parity.STEPS):
            training.step()
        part = sum(p.nbytes for p in training.module.parameters())
        return training, Checked(*self._verified(variant, training, one), part)

    def _known(self, training: Training, everyone: Sequence[Checked]) -> Known:
        return Known(
            off=max(c.off for c in everyone),
            wrong=sum(c.wrong for c in everyone),
            part_bytes=[c.part_bytes for c in everyone],
            activation_bytes=self._ranks.gathered(activation_bytes(training)),
            idle_percent=idle_percent(training, self._ranks),
        )

    def _yardsticks(self, job: PipelineJob) -> dict[str, Callable[[], Any]]:
        return {_BOUND: bound_step(job)}

    def _records(
        self, job: PipelineJob, known: Mapping[str, Known], samples: Mapping[str, Samples]
    ) -> list[Pipelined]:
        bound_us = samples[_BOUND].quantile_us(0.5)
        return compared(
            [
                pipelined(job, name, self._mpi, k, samples[name], bound_us)
                for name, k in known.items()
            ]
        )
