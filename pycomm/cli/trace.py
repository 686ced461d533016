"""`pycomm trace`: the schedule of a pipeline as a picture."""

from __future__ import annotations

import click

from pycomm.errors import CommError
from pycomm.parallel.schedules.actions import Schedule
from pycomm.parallel.schedules.picture import ROUNDS, draw
from pycomm.parallel.schedules.registry import SCHEDULES, find_schedule
from pycomm.parallel.schedules.timeline import count_stages, idle_share, most_held

POSITIVE = click.IntRange(min=1)
EXAMPLES = """\b
What the schedules are for:
  sequential    one microbatch after the other, nothing overlaps: to compare with
  gpipe         all forward, then all back; keeps the activations of every microbatch
  1f1b          as fast, but stage s of p keeps those of p - s microbatches only; the default
  interleaved   several stages a rank: shorter bubbles, more messages
  zb-h1         gradients of weights wait until a rank would idle: 1f1b with a third of its bubble
\b
How to idle less: more microbatches, equal stages, interleaved or zb-h1.
\b
Examples:
  python -m pycomm trace --schedule 1f1b --stages 4 --microbatches 8
  python -m pycomm trace --schedule interleaved --stages 2 --stages-per-rank 3
"""


@click.command(epilog=EXAMPLES, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--schedule", "name", type=click.Choice(list(SCHEDULES)), default="1f1b")
@click.option("--stages", "ranks", type=POSITIVE, default=4, help="Of the pipeline: a rank each.")
@click.option("--stages-per-rank", type=POSITIVE, help="Interleaved: on each rank.  [default: 2]")
@click.option("--microbatches", type=POSITIVE, default=8, help="Parts of a batch.")
def trace(name: str, ranks: int, stages_per_rank: int | None, microbatches: int) -> None:
    """Draw what each stage of a pipeline does when, and say how long it idles and what it keeps.

    A clock is as long as any action takes. F3 sends microbatch 3 forward, B3 its gradient back, W3
    computes the gradient of the weights where B3 has left that; . is idle.
    """
    try:
        kind = find_schedule(name)
        schedule = kind.build(ranks, microbatches, kind.stages_on_a_rank(stages_per_rank))
    except CommError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{draw(schedule)}\n\n{_legend(schedule, microbatches)}")


def _legend(schedule: Schedule, microbatches: int) -> str:
    ranks, stages = len(schedule), count_stages(schedule)
    plain = (ranks - 1) / (microbatches + ranks - 1)
    lines = ["F forward, B backward, W gradients of weights, . idle; the number is the microbatch"]
    if stages > ranks:
        rounds = (f"{k * ranks} + r in {name}" for k, name in zip(range(stages // ranks), ROUNDS))
        lines.append(f"rank r has stage {', '.join(rounds)}")
    lines += [
        f"idle: {idle_share(schedule):.1%} of the time if backward takes twice as long as forward;",
        f"  in 1f1b and gpipe (p - 1) / (m + p - 1) = {plain:.1%}",
        f"activations kept at once by each stage: of {_listed(most_held(schedule))} microbatches",
    ]
    return "\n".join(lines)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
