"""One process in NumPy: what a reduction in a documented order must give, and data to reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES, OPS, DType, ReduceOp, premul_sum, resolve_op

DTYPE_NAMES = ("int32", "uint8", "float32", "float64", "float16", "bfloat16", "bool")


def operations(dtype: DType) -> list[ReduceOp]:
    """Return every operation that exists on `dtype`, with a factor that rounds."""
    found = []
    for name in OPS:
        try:
            found.append(resolve_op(premul_sum(0.3) if name == "premul_sum" else name, dtype))
        except TypeError:
            continue
    return found


CASES = [(DTYPES[name], op) for name in DTYPE_NAMES for op in operations(DTYPES[name])]
"""Every (dtype, operation) that there is, for the dtypes above."""


def random_inputs(ranks: int, count: int, dtype: DType, seed: int = 0) -> list[np.ndarray]:
    """Return one array per rank: any bits in integers, floats of mixed size, some special."""
    random = np.random.default_rng([seed, ranks, count, dtype.code])
    return [_random(random, rank, count, dtype) for rank in range(ranks)]


def _random(random: np.random.Generator, rank: int, count: int, dtype: DType) -> np.ndarray:
    if dtype.family in ("bool", "integer"):
        data = random.integers(0, 256, count * dtype.itemsize, np.uint8)
        return data % 2 == 1 if dtype.family == "bool" else data.view(dtype.name)
    x = random.standard_normal(count) * 10.0 ** random.integers(-5, 5, count)
    x[3 + rank :: 29] = 0.0
    x[4 + rank :: 31] = -0.0
    x[5 + rank :: 37] = np.nan
    x[6 + rank :: 41] = -np.inf if rank % 2 else np.inf
    return x.astype(numpy_dtype(dtype))


def _lesser(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a == b, np.where(np.signbit(a), a, b), np.minimum(a, b))


def _greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a == b, np.where(np.signbit(a), b, a), np.maximum(a, b))


def _combine(dtype: DType, op: ReduceOp) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    zeros = {"min": _lesser, "max": _greater} if dtype.family == "float" else {}
    plain = {"min": np.minimum, "max": np.maximum, "prod": np.multiply, "band": np.bitwise_and}
    return {**plain, "bor": np.bitwise_or, "bxor": np.bitwise_xor, **zeros}.get(op.name, np.add)


def in_order(inputs: Sequence[np.ndarray], dtype: DType, op: ReduceOp) -> np.ndarray:
    """Reduce `inputs` one after another in their order, in the accumulator; round once."""
    return by_host([inputs], dtype, op)


def by_host(inputs: Sequence[Sequence[np.ndarray]], dtype: DType, op: ReduceOp) -> np.ndarray:
    """Reduce each host's inputs in their order, then these in the order of hosts; round once."""
    wide = numpy_dtype(dtype.partial)
    combine = _combine(dtype, op)
    with np.errstate(all="ignore"):
        hosts = [[x.astype(wide) for x in host] for host in inputs]
        if op.name == "premul_sum":
            hosts = [[x * wide.type(op.factor) for x in host] for host in hosts]
        total = reduce(combine, [reduce(combine, host) for host in hosts])
        if op.name == "avg":
            total = total / wide.type(sum(map(len, hosts)))
        if dtype.family == "float":
            total = np.where(np.isnan(total), wide.type(np.nan), total)
        return total.astype(numpy_dtype(dtype))


def rank_order(
    inputs: Sequence[np.ndarray], counts: Sequence[int], dtype: DType, op: ReduceOp
) -> np.ndarray:
    """Add rank 0, 1, …, n−1, whatever the chunk."""
    return in_order(inputs, dtype, op)


def ring_order(
    inputs: Sequence[np.ndarray], counts: Sequence[int], dtype: DType, op: ReduceOp
) -> np.ndarray:
    """Add ranks c+1, c+2, …, n−1, 0, …, c in chunk c."""
    edges = np.cumsum([0, *counts])
    chunks = []
    for c in range(len(inputs)):
        turned = [*inputs[c + 1 :], *inputs[: c + 1]]
        chunks.append(in_order([x[edges[c] : edges[c + 1]] for x in turned], dtype, op))
    return np.concatenate(chunks)


ORDERS = {"rank": rank_order, "ring": ring_order}
"""A reference for each `Algorithm.order` that knows no hosts; `by_host` is the one that does."""
