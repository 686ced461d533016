"""What does not go together with compressed gradients."""

from __future__ import annotations

from pycomm.errors import ArgumentError
from pycomm.parallel.compression import Factory


def check_compression(compression: str | Factory | None, precision: str) -> None:
    """Return if gradients can be compressed so.

    Args:
        compression: None does not.
        precision: of the trainer.

    Raises:
        ArgumentError: what is left over would have another loss scale in the next step.
    """
    if compression is not None and precision == "fp16":
        raise ArgumentError(
            f"compression={compression!r} with precision='fp16': what is left over would have "
            "another loss scale; use precision='bf16'"
        )
