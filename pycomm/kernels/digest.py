"""What a function computes, as a digest that is the same in every process."""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from pycomm.errors import ArgumentError

_MISSING = object()


def function_digest(function: types.FunctionType, *more: Any) -> str:
    """Return 16 hexadecimal digits that differ for functions that compute something else.

    It covers bytecode, constants, names, and the values that the function takes from its closure
    and its module, functions among them: not its own name, its place or its docstring.

    Args:
        function: a Python function.
        more: values that belong to it.

    Raises:
        ArgumentError: the function can raise, or it uses something that cannot be compared.
    """
    words = _Words(function)
    text = "\n".join([*words.function(function), *map(words.value, more)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Words:
    """Everything that matters about a function, as lines of text; each function once."""

    def __init__(self, root: types.FunctionType):
        self.root = root
        self.seen: list[types.CodeType] = []

    def function(self, function: types.FunctionType) -> Iterator[str]:
        """Describe code, defaults and closure."""
        if function.__code__ in self.seen:
            yield f"function {self.seen.index(function.__code__)}"
            return
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        closure = dict(zip(function.__code__.co_freevars, cells, strict=True))
        yield from self.code(function.__code__, function.__globals__, function.__doc__)
        yield self.value([function.__defaults__, function.__kwdefaults__, sorted(closure)])
        yield from (self.value(closure[name], name) for name in sorted(closure))

    def code(self, code: types.CodeType, names: dict[str, Any], doc: str | None) -> Iterator[str]:
        """Describe instructions, constants, names, and the values of global names."""
        self.seen.append(code)
        if any(step.opname == "RAISE_VARARGS" for step in dis.get_instructions(code)):
            raise ArgumentError(
                f"{self.root.__name__} has a raise or an assert, but nobody could catch what it "
                "raises in the middle of an array: return a value for every input"
            )
        yield f"{code.co_code.hex()} {code.co_names} {code.co_argcount} {code.co_kwonlyargcount}"
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.code(constant, names, None)
            elif constant is None or constant != doc:
                yield self.value(constant)
        for name, value in self._globals(code, names):
            yield self.value(value, name)

    def value(self, value: Any, name: str = "") -> str:
        """Describe a value; `name` is what the function calls it."""
        value = getattr(value, "py_func", value)  # compiled by Numba
        kind = type(value).__name__
        if isinstance(value, types.FunctionType):
            return f"{name}: " + "\n".join(self.function(value))
        if isinstance(value, (tuple, list)):
            return f"{name}: {kind} {[self.value(v, name) for v in value]}"
        if isinstance(value, (set, frozenset)):
            return f"{name}: {kind} {sorted(self.value(v, name) for v in value)}"
        if isinstance(value, (np.ndarray, np.generic)):
            return f"{name}: {value.dtype} {value.shape} {value.tobytes().hex()}"
        text = getattr(value, "__name__", None) or repr(value)
        if " at 0x" in text:
            raise ArgumentError(
                f"{self.root.__name__} uses {name}, a {kind}, which cannot be compared between "
                "ranks: use numbers, NumPy arrays and functions"
            )
        return f"{name}: {kind} {getattr(value, '__module__', '')} {text}"

    def _globals(self, code: types.CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the global names that are read and their values, `math.pi` as one name."""
        name, value = "", _MISSING
        for step in dis.get_instructions(code):
            if isinstance(value, types.ModuleType) and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                name, value = f"{name}.{step.argval}", getattr(value, step.argval, _MISSING)
                continue
            if value is not _MISSING:
                yield name, value
            name, value = str(step.argval), _MISSING
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                value = names.get(name, _MISSING)  # a builtin is told by its name alone
