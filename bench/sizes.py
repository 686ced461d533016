"""Sizes as they are written on the command line: 4:100M:4, or 4,1K,25M."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as 100M; K, M and G are powers of 1024.

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 4, 32K, 100M")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_sizes(text: str) -> list[int]:
    """Return the sizes of min:max:factor, the largest always among them, or of a comma list.

    Raises:
        ValueError: the text is neither, or the factor is not above 1.
    """
    if ":" not in text:
        return sorted({parse_bytes(part) for part in text.split(",")})
    first, last, *rest = text.split(":")
    factor = float(rest[0].lstrip("×x")) if rest else 4.0
    size, largest = float(parse_bytes(first)), parse_bytes(last)
    if factor <= 1 or len(rest) > 1 or not 0 < size <= largest:
        raise ValueError(f"{text!r}: expected min:max:factor with factor > 1, as in 4:100M:4")
    sizes = []
    while size < largest:
        sizes.append(int(size))
        size *= factor
    return sorted({*sizes, largest})


class Sizes(click.ParamType):
    """The type of --sizes."""

    name = "MIN:MAX:FACTOR"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """Return the sizes in bytes."""
        try:
            return value if isinstance(value, list) else parse_sizes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Names(click.ParamType):
    """A comma list of names out of a table; "all" is all of them."""

    name = "NAME,…"

    def __init__(self, known: Any):
        self._known = list(known)

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """Return the names."""
        if isinstance(value, list):
            return value
        names = self._known if value == "all" else value.split(",")
        for name in names:
            if name not in self._known:
                self.fail(f"{name!r} is not one of {', '.join(self._known)}", param, ctx)
        return list(dict.fromkeys(names))
