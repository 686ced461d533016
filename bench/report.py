"""The text on rank 0: one line a record, or the columns of nccl-tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from bench.records import Record

_WIDTHS = {
    "op": 15,
    "impl": 16,
    "size(B)": 9,
    "count": 9,
    "type": 9,
    "redop": 6,
    "root": 4,
    "place": 5,
    "t_min": 9,
    "t_med": 9,
    "t_p95(us)": 10,
    "iqr%": 6,
    "algbw": 8,
    "busbw(GB/s)": 11,
    "#wrong": 7,
    "slow_rank": 9,
    "vs_best_peer": 12,
}
_LEFT = ("op", "impl")


def titles() -> str:
    """Return the line above the table."""
    return _aligned([f"#{name}" if name == "op" else name for name in _WIDTHS])


def row(record: Record) -> str:
    """Return one line of the table."""
    return _aligned(
        [
            f" {record.op}",
            record.impl,
            str(record.size_bytes),
            str(record.count),
            record.dtype,
            record.redop,
            str(record.root),
            record.place,
            f"{record.t_min_us:.2f}",
            f"{record.t_med_us:.2f}",
            f"{record.t_p95_us:.2f}",
            f"{record.iqr_percent:.1f}",
            f"{record.algbw_gbps:.3f}",
            f"{record.busbw_gbps:.3f}",
            "-" if record.wrong is None else str(record.wrong),
            str(record.slow_rank),
            "-" if record.vs_best_peer is None else f"{record.vs_best_peer:.2f}",
        ]
    )


def _aligned(cells: list[str]) -> str:
    return " ".join(
        cell.ljust(width) if name in _LEFT else cell.rjust(width)
        for cell, (name, width) in zip(cells, _WIDTHS.items())
    ).rstrip()


_NCCL_TYPES = {
    "float16": "half",
    "float32": "float",
    "float64": "double",
    "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2",
}
_NCCL_TITLES = (
    ("size", "count", "type", "redop", "root"),
    ("time", "algbw", "busbw", "#wrong"),
    ("(B)", "(elements)", "", "", ""),
    ("(us)", "(GB/s)", "(GB/s)", ""),
)


def nccl(records: Iterable[Record]) -> list[str]:
    """Return the tables of nccl-tests, one for each operation and implementation."""
    return [
        line
        for (op, impl), group in _grouped(records, lambda r: (r.op, r.impl))
        for line in _nccl_table(op, impl, group)
    ]


def _nccl_table(op: str, impl: str, records: list[Record]) -> list[str]:
    head, times, head_units, time_units = _NCCL_TITLES
    lines = [
        f"# {op}: {impl}",
        f"#{'':62}{'out-of-place':>30} {'in-place':>31}",
        "#" + _nccl_line(head, times, times)[1:],
        "#" + _nccl_line(head_units, time_units, time_units)[1:],
    ]
    for _, group in _grouped(records, lambda r: (r.size_bytes, r.dtype, r.redop, r.root)):
        by_place = {r.place: r for r in group}
        first = group[0]
        kind = _NCCL_TYPES.get(first.dtype, first.dtype)
        left = (str(first.size_bytes), str(first.count), kind, first.redop, str(first.root))
        lines.append(_nccl_line(left, *(_nccl_times(by_place.get(p)) for p in ("out", "in"))))
    wrong = sum(r.wrong or 0 for r in records)
    average = sum(r.busbw_gbps for r in records) / len(records)
    lines.append(f"# Out of bounds values : {wrong} {'OK' if wrong == 0 else 'FAILED'}")
    lines.append(f"# Avg bus bandwidth    : {average:.4g}")
    return lines


def _nccl_times(record: Record | None) -> tuple[str, ...]:
    if record is None:
        return ("N/A",) * 4
    numbers = (record.t_med_us, record.algbw_gbps, record.busbw_gbps)
    return (*(f"{n:.2f}" for n in numbers), "N/A" if record.wrong is None else str(record.wrong))


def _nccl_line(left: tuple[str, ...], out: tuple[str, ...], inside: tuple[str, ...]) -> str:
    cells = [f"{c:>{w}}" for c, w in zip(left, (13, 13, 14, 8, 8))]
    cells += [f"{c:>{w}}" for place in (out, inside) for c, w in zip(place, (9, 8, 8, 7))]
    return "".join(cells)


def _grouped(
    records: Iterable[Record], key: Callable[[Record], tuple]
) -> list[tuple[tuple, list[Record]]]:
    """Group records by a key, in the order in which the keys appear."""
    records = list(records)
    order = list(dict.fromkeys(map(key, records)))
    ordered = sorted(records, key=lambda r: order.index(key(r)))
    return [(k, list(group)) for k, group in groupby(ordered, key)]
