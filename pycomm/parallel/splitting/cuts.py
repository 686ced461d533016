"""Cuts: layers at which parts begin, by name or by what layers cost."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise

from pycomm.errors import ArgumentError


def ranges_of(cuts: Sequence[str], names: Sequence[str]) -> list[range]:
    """Return the ranges of layers of parts that begin at the named modules.

    Args:
        cuts: full names of modules, one for each part but the first; the part begins at the first
            call of the module or of one inside it. "NAME:2" is the second call of a layer.
        names: of all layers, in order.

    Raises:
        ArgumentError: a name is unknown, the first layer, or not behind the one before.
    """
    starts = [0, *(_position(cut, names) for cut in cuts), len(names)]
    for number, (before, start) in enumerate(pairwise(starts[:-1])):
        if start <= before:
            earlier = repr(cuts[number - 1]) if number else "the first layer"
            raise ArgumentError(
                f"cuts={list(cuts)}: {cuts[number]!r} is not behind {earlier}; name them in the "
                f"order in which they are called: {', '.join(names)}"
            )
    return [range(start, stop) for start, stop in pairwise(starts)]


def _position(cut: str, names: Sequence[str]) -> int:
    for index, name in enumerate(names):
        if name == cut or name.startswith(cut + "."):
            return index
    near = difflib.get_close_matches(cut, names, 1)
    hint = f"; is {near[0]!r} meant?" if near else ""
    raise ArgumentError(
        f"cuts: {cut!r} is no module at which a part can begin{hint} (there are {', '.join(names)})"
    )
