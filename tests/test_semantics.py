"""docs/semantics.md says what the code does: its table is generated, and the extension agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycomm.errors import UnsupportedError
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DTYPES, OPS, ReduceOp, op_table, resolve_op

PAGE = Path(__file__).parents[1] / "docs" / "semantics.md"


def test_the_table_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("<!-- op_table -->\n")[2].partition("<!-- /op_table -->")[0]
    advice = "put what `python -c 'from pycomm.types import *; print(op_table())'` says into it"
    assert table.strip() == op_table(), advice


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("name", OPS)
def test_every_mark_is_true(dtype, name):
    rows = [line.strip("| ").split(" | ") for line in op_table().splitlines()]
    mark = next(row for row in rows if row[0] == dtype.name)[rows[0].index(name)]
    x, op = np.zeros(dtype.itemsize, np.uint8), ReduceOp(name)
    if mark == "✓":
        CpuKernels().reduce([x, x], x, dtype, resolve_op(op, dtype))
        return
    with pytest.raises(UnsupportedError, match=f"'{name}' does not exist on {dtype.name}: "):
        resolve_op(op, dtype)
    with pytest.raises(ValueError, match="does not exist on the dtype"):
        CpuKernels().reduce([x, x], x, dtype, op)
