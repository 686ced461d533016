"""Compressed reduction of gradients: one method a file, found by its name."""

from pycomm.parallel.compression import bf16, fp8, fp16, int8, power_sgd, top_k
from pycomm.parallel.compression.base import (
    METHODS,
    Compression,
    Factory,
    Leftover,
    find,
    find_factory,
)

__all__ = ["METHODS", "Compression", "Factory", "Leftover", "find", "find_factory"]
