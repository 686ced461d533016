"""Draws what several runs wrote, and who is ahead: python bench/plot.py a.json b.json."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from bench import merge, records
from bench.outputs import Drawn


@click.command(context_settings={"show_default": True})
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--out", type=Drawn(), default="bench.png", help="PNG, SVG or PDF.")
@click.option("--op", help="Only this operation.")
def main(files: tuple[Path, ...], out: Path, op: str | None) -> None:
    """Draw time and bandwidth over size, and print how far pycomm is ahead of the best peer.

    Of an implementation in several FILES the first is drawn; ratios are taken within a file.
    """
    runs = [records.read(file) for file in files]
    runs = [(meta, [r for r in found if op in (None, r.op)]) for meta, found in runs]
    print("\n".join(merge.table(runs)))
    from bench.drawing import draw

    draw(runs, out)


if __name__ == "__main__":
    main()
