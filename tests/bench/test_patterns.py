"""The inputs of benchmarks are exact, differ by rank and index, and are never poison."""

import itertools

import numpy as np
import pytest

from bench.patterns import PERIOD, POISON, Pattern
from pycomm.errors import UnsupportedError
from pycomm.types import DTYPES, OPS, resolve_op


def exists(op, dtype):
    try:
        return bool(resolve_op(op, DTYPES[dtype]))
    except UnsupportedError:
        return False


CASES = [(o, d) for o, d in itertools.product(OPS[:-1], DTYPES) if exists(o, d)]
COMBINE = {"sum": np.add, "avg": np.add, "prod": np.multiply, "min": np.minimum}
COMBINE |= {"max": np.maximum, "band": np.bitwise_and, "bor": np.bitwise_or}
COMBINE |= {"bxor": np.bitwise_xor}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_every_order_of_reducing_gives_the_result_exactly(op, dtype, ranks):
    if (op, dtype, ranks) == ("avg", "float8_e5m2", 9):
        with pytest.raises(UnsupportedError, match="avg over 9 ranks is not exact in float8_e5m2"):
            Pattern(dtype, op, ranks)
        return
    pattern = Pattern(dtype, op, ranks)
    inputs = [pattern.of(rank, 0, PERIOD) for rank in range(ranks)]
    for order in (range(ranks), reversed(range(ranks))):
        total = None
        for rank in order:
            # rounded to the dtype after every step, as the worst implementation would
            total = inputs[rank] if total is None else COMBINE[op](total, inputs[rank])
            total = total.astype(inputs[0].dtype)
        if op == "avg":
            wide = np.complex128 if "complex" in dtype else np.float64
            total = (total.astype(wide) / ranks).astype(total.dtype)
        assert (total == pattern.reduced(0, PERIOD)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_and_indices_differ_and_nothing_is_poison(dtype):
    pattern = Pattern(dtype, "none", 3)
    a, b = pattern.of(0, 0, PERIOD), pattern.of(1, 0, PERIOD)
    assert (a != b).mean() > 0.3
    for shift in (1, 16, 64, 4096):
        assert (a[shift:] != a[:-shift]).mean() > 0.3
    poison = np.full(a.itemsize, POISON, np.uint8)
    assert not (a.view(np.uint8).reshape(-1, a.itemsize) == poison).all(axis=1).any()


def test_a_part_of_an_input_is_what_is_there():
    pattern = Pattern("int32", "sum", 2)
    whole = pattern.of(1, 0, 3 * PERIOD)
    assert (pattern.of(1, PERIOD + 5, 1000) == whole[PERIOD + 5 : PERIOD + 1005]).all()
    assert (pattern.reduced(7, 9) == pattern.of(0, 7, 9) + pattern.of(1, 7, 9)).all()
