"""All rows of the table of kernels.py."""

from __future__ import annotations

from bench.device_checks import checks
from bench.device_dropout import dropouts
from bench.device_kernels import Kernel, arithmetic
from bench.device_moves import moves
from bench.device_quantize import quantised
from bench.device_strided import strided


def kernels() -> dict[str, Kernel]:
    """Return every kernel that is measured, by a name for the command line."""
    rows = [*arithmetic(), *moves(), *strided(), *quantised(), *dropouts(), *checks()]
    return {f"{k.name}-{k.dtype}-{k.redop}": k for k in rows}
