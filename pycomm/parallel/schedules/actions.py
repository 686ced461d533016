"""What a stage can do with a microbatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Action:
    """Something that a stage does with a microbatch; both count from 0."""

    LETTER: ClassVar[str]
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.LETTER}{self.microbatch}"


class Forward(Action):
    """Send a microbatch through a stage."""

    LETTER = "F"


class Backward(Action):
    """Send a microbatch's gradient back through a stage: to its inputs and to its weights.

    Only to its inputs, if the schedule has an action `Weights` for that stage and microbatch.
    """

    LETTER = "B"


class Weights(Action):
    """Compute the gradient of a stage's weights, which its `Backward` has left for later."""

    LETTER = "W"


Schedule = list[list[Action]]
"""For each rank its actions, in order. Of n ranks, rank r has the stages r, r + n, r + 2n, …"""
