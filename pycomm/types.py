"""Element types and reduce operations, and which operation exists on which type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pycomm.errors import ArgumentError, UnsupportedError

Family = Literal["bool", "integer", "float", "complex"]


@dataclass(frozen=True)
class DType:
    """An element type: its name in NumPy and torch, the code that csrc/elements.h uses, its size.

    `accumulator` names the type in which sums are formed: float32 for every narrower float,
    the type itself for all others.
    """

    name: str
    code: int
    itemsize: int
    family: Family
    accumulator: str

    @property
    def partial(self) -> DType:
        """The DType of partial results."""
        return DTYPES[self.accumulator]


def _table() -> dict[str, DType]:
    rows: list[tuple[str, int, Family]] = [
        ("bool", 1, "bool"),
        ("int8", 1, "integer"),
        ("int16", 2, "integer"),
        ("int32", 4, "integer"),
        ("int64", 8, "integer"),
        ("uint8", 1, "integer"),
        ("uint16", 2, "integer"),
        ("uint32", 4, "integer"),
        ("uint64", 8, "integer"),
        ("float16", 2, "float"),
        ("bfloat16", 2, "float"),
        ("float32", 4, "float"),
        ("float64", 8, "float"),
        ("float8_e4m3fn", 1, "float"),
        ("float8_e5m2", 1, "float"),
        ("complex64", 8, "complex"),
        ("complex128", 16, "complex"),
    ]
    narrow = {"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}
    return {
        name: DType(name, code, size, family, "float32" if name in narrow else name)
        for code, (name, size, family) in enumerate(rows)
    }


DTYPES: dict[str, DType] = _table()
"""Every supported element type by name; the order is that of `DType` in csrc/elements.h."""

OPS = ("sum", "avg", "prod", "min", "max", "band", "bor", "bxor", "premul_sum")
"""Every reduce operation by name; the order is that of `Op` in csrc/elements.h."""

_BITS = frozenset({"band", "bor", "bxor"})
_ARITHMETIC = frozenset({"sum", "avg", "prod", "premul_sum"})
_ALLOWED: dict[str, frozenset[str]] = {
    "bool": _BITS | {"min", "max"},
    "integer": _BITS | {"sum", "prod", "min", "max"},
    "float": _ARITHMETIC | {"min", "max"},
    "complex": _ARITHMETIC,
}
_INSTEAD = {
    ("bool", "sum"): "use 'bor', or convert to an integer type to count",
    ("integer", "avg"): "use 'sum' and divide, or convert to a float type",
    ("integer", "premul_sum"): "multiply first and use 'sum', or convert to a float type",
    ("complex", "min"): "reduce the absolute values instead",
    ("complex", "max"): "reduce the absolute values instead",
}


@dataclass(frozen=True)
class ReduceOp:
    """A reduce operation; `factor` multiplies each rank's values first (premul_sum only)."""

    name: str
    factor: float = 1.0

    @property
    def code(self) -> int:
        """The code that csrc/elements.h uses."""
        return OPS.index(self.name)

    def on(self, dtype: DType) -> ReduceOp:
        """Return the operation as it is run on `dtype`.

        Raises:
            UnsupportedError: it does not exist there; says what to use instead.
        """
        allowed = _ALLOWED[dtype.family]
        if self.name not in allowed:
            instead = _INSTEAD.get((dtype.family, self.name))
            advice = instead or "choose one of " + ", ".join(sorted(allowed))
            raise UnsupportedError(f"op={self.name!r} does not exist on {dtype.name}: {advice}")
        return self


SUM = ReduceOp("sum")


def premul_sum(factor: float) -> ReduceOp:
    """Return the operation that multiplies each rank's values by `factor`, then sums.

    The factor must be the same on every rank; the product is formed in the accumulator.
    """
    return ReduceOp("premul_sum", float(factor))


def resolve_op(op: str | ReduceOp, dtype: DType) -> ReduceOp:
    """Return the operation called `op`, or raise if there is none for `dtype`.

    Raises:
        ArgumentError: it is no operation, and none has that name.
        UnsupportedError: the operation does not exist on this dtype; says what to use instead.
    """
    if isinstance(op, ReduceOp):
        return op.on(dtype)
    if not isinstance(op, str) or op not in OPS or op == "premul_sum":
        names = ", ".join(repr(o) for o in OPS[:-1])
        more = "pycomm.premul_sum(factor), pycomm.reduce_op(function)"
        raise ArgumentError(f"op={op!r} is not one of {names}, {more}{_advice(op)}")
    return ReduceOp(op).on(dtype)


def _advice(op: object) -> str:
    """Return what to pass instead of a function."""
    if not callable(op):
        return ""
    name = getattr(op, "__name__", "function")
    return f": pass {name!r}" if name in OPS else f": pass pycomm.reduce_op({name})"


def op_table() -> str:
    """Return which operation exists on which dtype, as the Markdown of docs/semantics.md."""
    head = ["dtype", "bytes", "accumulator", *OPS, "reduce_op"]
    lines = [head, ["---"] * len(head)]
    for dtype in DTYPES.values():
        marks = ["✓" if op in _ALLOWED[dtype.family] else "—" for op in OPS]
        lines.append([dtype.name, str(dtype.itemsize), dtype.accumulator, *marks, "✓"])
    table = ["| " + " | ".join(line) + " |" for line in lines]
    advice = [f"- `{op}` on {family}: {text}." for (family, op), text in _INSTEAD.items()]
    return "\n".join([*table, "", "Where there is none:", "", *advice])
