"""Files that benchmarks write at their end, refused at the start where that could not be."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_FORMATS = (".png", ".svg", ".pdf")


class Written(click.Path):
    """A path where a file can be written; folders that are missing are made then."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return the path, or say why no file can be written there."""
        path = Path(super().convert(value, param, ctx))
        folder = next(p for p in path.absolute().parents if os.path.exists(p))
        if not path.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
            self.fail(f"{path}: {folder} is no folder that can be written to.", param, ctx)
        return path


class Drawn(Written):
    """A path where matplotlib, which has to be there, can write a figure."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return the path, or say what is missing or which formats there are."""
        path = super().convert(value, param, ctx)
        if path.suffix.lower() not in _FORMATS:
            self.fail(f"{path} does not end in one of {', '.join(_FORMATS)}.", param, ctx)
        if importlib.util.find_spec("matplotlib") is None:
            self.fail("drawing needs matplotlib: pip install matplotlib", param, ctx)
        return path


JSON = click.option("--json", type=Written(), help="Write JSON Lines here.")


def plot(what: str) -> Callable[[Callable], Callable]:
    """Return the option --plot, which draws `what`."""
    return click.option("--plot", type=Drawn(), help=f"Draw {what} here, as PNG, SVG or PDF.")
