"""All rows of the table of kernels.py."""

from __future__ import annotations

from bench.device_checks import checks
from bench.device_kernels import Kernel, arithmetic
from bench.device_moves import moves


def kernels() -> dict[str, Kernel]:
    """Return every kernel that is measured, by a name for the command line."""
    return {f"{k.name}-{k.dtype}-{k.redop}": k for k in [*arithmetic(), *moves(), *checks()]}
