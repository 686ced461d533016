"""Weight gradients fill the bubbles."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Action, Backward, Schedule, Weights
from pycomm.parallel.schedules.one_f_one_b import row_of
from pycomm.parallel.schedules.registry import schedule


@schedule("zb-h1")
def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """Pass gradients on before those of the weights are computed, which fill the bubbles: ZB-H1.

    ::

        clock   0  1  2  3  4  5  6  7  8  9  10 11 12 13
        stage 0 F0 F1 F2 .  .  B0 W0 F3 B1 W1 B2 W2 B3 W3
        stage 1 .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        stage 2 .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3

    Stage s leaves the weights' gradients of s microbatches for later. If forward, backward to the
    inputs and backward to the weights take a clock each, and m ≥ p, each stage idles in p − 1
    clocks, where 1F1B idles in 3(p − 1); with fewer microbatches in 2p − 1 − m. A stage keeps
    something of at most min(p, m) microbatches: no more than the first stage of 1F1B. Source: Qi
    et al., Zero Bubble Pipeline Parallelism (2023), section 2.1 and figure 3.
    """
    rows = [row_of(rank, ranks - 1 - rank, microbatches) for rank in range(ranks)]
    return [_with_weights(rank, row) for rank, row in enumerate(rows)]


def _with_weights(rank: int, of_1f1b: list[Action]) -> list[Action]:
    """Return a row of 1F1B in which the weights follow, `rank` backward passes behind."""
    row: list[Action] = []
    waiting: list[Action] = []
    for action in of_1f1b:
        row.append(action)
        if isinstance(action, Backward):
            waiting.append(Weights(rank, action.microbatch))
            if len(waiting) > rank:
                row.append(waiting.pop(0))
    return row + waiting
