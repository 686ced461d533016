"""What a split consists of, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycomm.parallel.splitting.split import Split

_HEAD = ("part", "layers", "parameters", "cost", "share", "takes from earlier parts")


def explain(split: Split) -> str:
    """Return a table with a row for each part, below what it was balanced by."""
    total = sum(split.costs) or 1.0
    shares = [sum(split.costs[r.start : r.stop]) / total for r in split.ranges]
    rows = [_HEAD]
    for stage, (members, share) in enumerate(zip(split.ranges, shares)):
        part = split.parts[stage]
        cost = _amount(share * total if sum(split.costs) else 0.0, split.unit)
        count = sum(p.numel() for p in part.module.parameters())
        takes = ", ".join(part.takes) if stage else ""
        rows.append(
            (str(stage), _layers(split, members), f"{count:,}", cost, f"{share:.1%}", takes)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([_reason(split, max(shares)), *lines, *_ties(split)])


def _reason(split: Split, largest: float) -> str:
    over = largest * len(split.ranges)
    return (
        f"{len(split.parts)} parts of {len(split.names)} layers, {split.reason}: "
        f"the largest has {over:.2f} times the mean"
    )


def _layers(split: Split, members: range) -> str:
    first, last = split.names[members.start], split.names[members.stop - 1]
    return first if len(members) == 1 else f"{first} … {last} ({len(members)})"


def _ties(split: Split) -> list[str]:
    return [
        f"tied: {' = '.join(tie.names)} in parts {', '.join(map(str, tie.stages))}"
        for tie in split.ties
    ]


def _amount(cost: float, unit: str) -> str:
    if unit == "s":
        return f"{cost * 1e3:.2f} ms"
    if unit == "bytes":
        return f"{cost / 2**20:.2f} MiB"
    return f"{cost:,.6g}"
