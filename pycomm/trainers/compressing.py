"""What does not go together with compressed gradients."""

from __future__ import annotations

from collections.abc import Sequence

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.compression import Factory
from pycomm.parallel.ties import Tie


def name_of(compression: str | Factory | None) -> str | None:
    """Return what must be the same on all ranks: functions cannot be compared."""
    return "a function" if callable(compression) else compression


def check_compression(
    compression: str | Factory | None, precision: str, ties: Sequence[Tie] = ()
) -> None:
    """Return if gradients can be compressed so.

    Args:
        compression: None does not.
        precision: of the trainer.
        ties: the parameters that several stages hold.

    Raises:
        ArgumentError: what is left over would have another loss scale in the next step.
        UnsupportedError: holders of a tied weight would compress its gradient with different
            neighbours, and become unequal.
    """
    if compression is None:
        return
    if precision == "fp16":
        raise ArgumentError(
            f"compression={compression!r} with precision='fp16': what is left over would have "
            "another loss scale; use precision='bf16'"
        )
    if ties:
        raise UnsupportedError(
            f"compression={compression!r} with {ties[0].names[0]!r} in stages "
            f"{', '.join(map(str, ties[0].stages))}, which would not stay equal: leave "
            "compression= out, or keep the weight in one stage by cuts="
        )
