"""A user's reduce operations: a scalar Python function, compiled by Numba into a native loop."""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from pycomm.errors import ArgumentError, MissingError, UnsupportedError
from pycomm.kernels.cpu import CpuKernels
from pycomm.kernels.digest import function_digest
from pycomm.types import DTYPES, DType, ReduceOp

_OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False}
"""Division by zero gives inf or 0, as in NumPy; no operations are contracted or reordered."""

_PROBES = (0, 1, 2, 3)
"""The values on which an identity is checked: not negative, for operations such as max |x|."""


@dataclass(frozen=True)
class UserOp(ReduceOp):
    """A user's operation; its name ends with a digest of what the function computes.

    Equal names mean equal functions, in every process. `fold` is there once the operation was
    resolved for a dtype, see `on`.
    """

    function: Any = field(default=None, repr=False, compare=False)
    identity: Any = field(default=None, repr=False, compare=False)
    fold: Any = field(default=None, repr=False, compare=False)

    @property
    def code(self) -> int:
        """The address of the native loop."""
        return int(self.fold.address)

    def on(self, dtype: DType) -> UserOp:
        """Return the operation compiled for the accumulator of `dtype`.

        Raises:
            UnsupportedError: Numba cannot compile the function for it, its result does not fit, or
                the identity is none.
        """
        return _compiled(self, dtype.name)


def reduce_op(fn: Callable[[Any, Any], Any], identity: Any = None) -> ReduceOp:
    """Return a reduce operation that combines two elements by `fn(a, b)`.

    Numba compiles `fn` for each dtype at the first use (a fraction of a second) into a loop that
    runs without the interpreter. It computes in the accumulator: float32 for float16, bfloat16 and
    float8, whose results are rounded once; the type itself for all others. Literals follow Numba's
    rules: `a + 1.0` of a float32 is computed in float64, then rounded. Integers wrap around.

    All ranks must use the same function: what it computes is part of a call's fingerprint.

    Args:
        fn: a function of two scalars, associative unless the order of addition is of no concern.
            It must give a value for every input: `raise` and `assert` are refused.
        identity: a value e with fn(e, x) == x, for kernels that pad; checked, on 0, 1, 2 and 3,
            when the operation is first used with a dtype. The CPU needs none.

    Raises:
        ArgumentError: `fn` is not a Python function of two arguments, or cannot be compared.
        MissingError: Numba is not installed.
    """
    function = getattr(fn, "py_func", fn)
    if not isinstance(function, types.FunctionType):
        raise ArgumentError(
            f"reduce_op({fn!r}): a Python function of two arguments is needed; wrap another "
            "callable as in lambda a, b: max(a, b)"
        )
    parameters = inspect.signature(function).parameters.values()
    if [p.kind for p in parameters] != [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2:
        raise ArgumentError(
            f"reduce_op({function.__name__}): the function must have two arguments, not "
            f"({', '.join(map(str, parameters))})"
        )
    import_numba()
    name = f"{function.__name__}#{function_digest(function, identity)}"
    return UserOp(name, function=function, identity=identity)


def import_numba() -> Any:
    """Return the module, set up so that an element's bits do not depend on its place.

    Raises:
        MissingError: it is not installed.
        UnsupportedError: it was imported before in a way that cannot be used.
    """
    # Intel's vector mathematics gives an element other bits inside a vector than at its end.
    if "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_DISABLE_INTEL_SVML", "1")
    try:
        import numba
    except ImportError as error:
        raise MissingError(f"pycomm.reduce_op needs Numba: pip install numba ({error})") from None
    config: Any = numba.config
    if getattr(config, "USING_SVML", False) or config.DISABLE_JIT:
        raise UnsupportedError(
            "pycomm.reduce_op needs Numba with NUMBA_DISABLE_INTEL_SVML=1 (results must not depend "
            "on an element's place) and without NUMBA_DISABLE_JIT: set them before numba is "
            "imported"
        )
    return numba


@lru_cache(maxsize=1024)
def _compiled(op: UserOp, dtype_name: str) -> UserOp:
    """Return the operation with its fold for a dtype, checked."""
    dtype = DTYPES[dtype_name]
    wide = dtype.accumulator
    where = dtype_name if wide == dtype_name else f"{dtype_name} (computed in {wide})"
    if function_digest(op.function, op.identity) != op.name.rpartition("#")[2]:
        raise ArgumentError(
            f"what {op.name} uses has changed since reduce_op was called: call it again"
        )
    try:
        bound = replace(op, fold=_fold(op, wide))
        _check_identity(bound, dtype.partial)
    except UnsupportedError as error:
        raise UnsupportedError(f"{op.name} does not work on {where}: {error}") from None
    return bound


@lru_cache(maxsize=1024)
def _fold(op: UserOp, accumulator: str) -> Any:
    """Compile `op` into a C function (partial, x, count) over elements of the accumulator."""
    numba = import_numba()
    element = numba.from_dtype(np.dtype(accumulator))
    try:
        scalar = numba.njit(**_OPTIONS)(op.function)
        scalar.compile((element, element))
        result = scalar.overloads[element, element].signature.return_type
    except Exception as error:
        raise UnsupportedError(reason(error)) from None
    if not _fits(numba.types, result, element):
        raise UnsupportedError(
            f"it returns {result}: convert the result to {accumulator}, or the array to another "
            "dtype"
        )
    return _loop(numba, scalar, element)


def _loop(numba: Any, scalar: Any, element: Any) -> Any:
    pointer = numba.types.CPointer(element)

    def fold(partial: Any, x: Any, count: int) -> None:
        into, other = numba.carray(partial, count), numba.carray(x, count)
        for i in range(count):
            into[i] = scalar(into[i], other[i])

    signature = numba.types.void(pointer, pointer, numba.types.intp)
    return numba.cfunc(signature, **_OPTIONS)(fold)


def _fits(types: Any, result: Any, element: Any) -> bool:
    """Say whether storing `result` as `element` only rounds or wraps; truth may be an integer."""
    ladder = (types.Boolean, types.Integer, types.Float, types.Complex)
    steps = [
        next((i for i, kind in enumerate(ladder) if isinstance(t, kind)), None)
        for t in (result, element)
    ]
    return steps[0] is not None and steps[0] <= max(steps[1] or 0, 1)


def reason(error: Exception) -> str:
    """Return the one line of Numba's error that says what is wrong."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    noise = re.compile(r"$|Failed in |- Resolution failure|During: ")
    useful = [line for line in lines if not noise.match(line)] or [type(error).__name__]
    words = useful[:2] if useful[0].endswith(":") else useful[:1]
    return " ".join(words)


def _check_identity(op: UserOp, dtype: DType) -> None:
    """Raise if the identity, as an element of `dtype`, changes one of the probes."""
    if op.identity is None:
        return
    x = np.array(_PROBES).astype(dtype.name)
    try:
        with np.errstate(all="ignore"):
            partial = np.full(len(x), op.identity, x.dtype)
            exact = dtype.family in ("float", "complex") or bool((partial == op.identity).all())
    except (OverflowError, TypeError, ValueError):
        exact = False
    if not exact:
        raise UnsupportedError(f"identity={op.identity!r} is no value of {dtype.name}")
    CpuKernels().accumulate(partial.view(np.uint8), x.view(np.uint8), dtype, op)
    for got, probe in zip(partial.tolist(), x.tolist(), strict=True):
        if got != probe:
            raise UnsupportedError(f"identity={op.identity!r} is none: with {probe} it gives {got}")
