"""What `--parallel` chooses between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ranks import Ranks
from bench.training import pipelined, results
from bench.training.data_parallel import DataParallelMeasuring
from bench.training.jobs import MODELS, Job, PipelineJob
from bench.training.measuring import Measuring
from bench.training.model_parallel import ModelParallelMeasuring

Draw = Callable[[dict[str, Any], Sequence[Any], Path], None]


@dataclass(frozen=True)
class Mode:
    """How the ranks share the work.

    Attributes:
        models, optimizers: what is trained unless the command line says it.
        job: makes a job; further options of the command line come last.
        measuring: measures it.
        row: makes a record a line of the table.
        widths: the table's columns.
        drawing: returns what draws the records; only then is matplotlib loaded.
    """

    models: Sequence[str]
    optimizers: Sequence[str]
    job: Callable[[str, str, Ranks, dict[str, Any]], Job]
    measuring: type[Measuring]
    row: Callable[[Any], str]
    widths: dict[str, int]
    drawing: Callable[[], Draw]


def _data_job(model: str, rule: str, ranks: Ranks, chosen: dict[str, Any]) -> Job:
    return Job(model, rule, ranks, chosen["device"], chosen["batch"] or MODELS[model].batch)


def _pipeline_job(model: str, rule: str, ranks: Ranks, chosen: dict[str, Any]) -> PipelineJob:
    batch = chosen["batch"] or MODELS[model].batch
    return PipelineJob(model, rule, ranks, chosen["device"], batch, chosen["microbatches"])


def _bars() -> Draw:
    from bench.training.drawing import draw

    return draw


def _pipelines() -> Draw:
    from bench.training.pipeline_drawing import draw

    return draw


MODES = {
    "data": Mode(
        models=("cnn", "gpt-13", "gpt-51", "gpt-115"),
        optimizers=("sgd", "adamw"),
        job=_data_job,
        measuring=DataParallelMeasuring,
        row=results.row,
        widths=results.WIDTHS,
        drawing=_bars,
    ),
    "model": Mode(
        models=("gpt8-6", "gpt8-14", "gpt8-words-15"),
        optimizers=("sgd",),
        job=_pipeline_job,
        measuring=ModelParallelMeasuring,
        row=pipelined.row,
        widths=pipelined.WIDTHS,
        drawing=_pipelines,
    ),
}
"""Every mode by its name."""
