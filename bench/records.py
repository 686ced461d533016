"""One flat record a measurement, as it is printed, written as JSON, and read again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.operations import Case
from bench.sampling import Samples


@dataclass(frozen=True)
class Record:
    """The result of one implementation on one case; bench/README.md says what the fields are."""

    op: str
    impl: str
    size_bytes: int
    count: int
    dtype: str
    redop: str
    root: int
    place: str
    ranks: int
    mpi: str
    batch: int
    samples: int
    t_min_us: float
    t_q25_us: float
    t_med_us: float
    t_q75_us: float
    t_p95_us: float
    iqr_percent: float
    algbw_gbps: float
    busbw_gbps: float
    wrong: int | None
    slow_rank: int
    vs_best_peer: float | None = None

    @property
    def where(self) -> tuple[Any, ...]:
        """What two records must have in common to be points of one curve."""
        return (self.op, self.dtype, self.redop, self.root, self.place, self.ranks)


def record(case: Case, impl: str, mpi: str, samples: Samples, wrong: int | None) -> Record:
    """Summarize the samples of one implementation."""
    bandwidth = case.size_bytes / (samples.quantile_us(0.5) * 1e3)
    return Record(
        op=case.op.name,
        impl=impl,
        size_bytes=case.size_bytes,
        count=case.count,
        dtype=case.dtype,
        redop=case.redop,
        root=case.root,
        place=case.place,
        ranks=case.ranks,
        mpi=mpi,
        batch=samples.batch,
        algbw_gbps=bandwidth,
        busbw_gbps=bandwidth * case.op.bus(case.ranks),
        wrong=wrong,
        **samples.summary(),
    )


def compared(records: Iterable[Record], competitors: set[str]) -> list[Record]:
    """Return records of one case with vs_best_peer: its time over theirs; above 1 is faster."""
    records = list(records)
    times = [r.t_med_us for r in records if r.impl in competitors]
    if not times:
        return records
    return [replace(r, vs_best_peer=min(times) / r.t_med_us) for r in records]


def write(path: Path, meta: dict[str, Any], records: Iterable[Record]) -> None:
    """Write JSON Lines: the meta record, then one record a line."""
    lines = [meta, *({"record": "result", **asdict(r)} for r in records)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return what `write` wrote."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    metas = [line for line in lines if line["record"] == "meta"]
    results = [line for line in lines if line["record"] == "result"]
    return metas[0], [Record(**{k: v for k, v in r.items() if k != "record"}) for r in results]
