"""Runs cases on implementations: verify each, time all in turn, report, and say what was wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

import pycomm
from bench import environment, records, report
from bench.device_memory import DeviceMemory
from bench.gpu import Gpu, described
from bench.memory import Memory
from bench.operations import Case, Operation, Place, fitting_count
from bench.patterns import Pattern
from bench.peers import PEERS, Peer, UnavailableError
from bench.ranks import Ranks
from bench.records import Record
from bench.sampling import Plan, collect
from bench.verify import Batch, count_wrong
from pycomm.errors import MissingError
from pycomm.types import DTYPES

_CROWDED_SAMPLE_US = 2_000.0
"""With more ranks than cores, leaving a barrier takes a turn of the scheduler."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for; the names are those of its options."""

    ops: Sequence[Operation]
    sizes: Sequence[int]
    dtype: str
    redop: str
    root: int
    place: str | None
    impl: Sequence[str]
    seconds: float
    iterations: int | None
    sample_us: float
    format: str
    json: Path | None
    plot: Path | None
    plant: int | None
    device: str = "cpu"


class Runner:
    """One run of a benchmark; all ranks make the same calls in the same order."""

    def __init__(self, options: Options):
        self._options = options
        self._ranks = Ranks()
        _check(options, self._ranks.size)
        gpu = opened_gpu(self._ranks) if options.device == "cuda" else None
        self._peers, self._missing = opened(options.impl, self._ranks, options.device)
        versions = [peer.version() for peer in self._peers.values()]
        gpus = described(self._ranks.gathered(gpu.runtime.identity)) if gpu else None
        self._meta = environment.describe(self._ranks, versions, self._missing, gpus)
        self._plan = self._sampling_plan()
        itemsize = DTYPES[options.dtype].itemsize
        largest = max(options.sizes) + self._ranks.size * itemsize
        self._memory = DeviceMemory(gpu, largest) if gpu else Memory(self._ranks, largest)
        self._records: list[Record] = []

    def run(self) -> int:
        """Do it all; return the exit code: 1 if an element was wrong, or nothing was measured."""
        self._say(environment.header(self._meta))
        table = self._options.format == "table"
        if table:
            self._say([report.titles()])
        for case in self._cases():
            found = self._measure(case)
            self._records += found
            if table:
                self._say(map(report.row, found))
        if not table:
            self._say(report.nccl(self._records))
        self._finish()
        return self._verdict()

    def _sampling_plan(self) -> Plan:
        options, crowded = self._options, self._meta["oversubscribed"]
        sample_us = max(options.sample_us, _CROWDED_SAMPLE_US if crowded else 0)
        return Plan(sample_us, options.seconds, options.iterations)

    def _cases(self) -> Iterable[Case]:
        options, ranks = self._options, self._ranks
        for op in options.ops:
            redop = options.redop if op.reduces else "none"
            root = options.root if op.rooted else -1
            itemsize = DTYPES[options.dtype].itemsize
            counts = [fitting_count(op, s, itemsize, ranks.size) for s in options.sizes]
            for count in dict.fromkeys(counts):
                for place in self._places(op):
                    yield Case(op, options.dtype, redop, root, place, count, ranks.rank, ranks.size)

    def _places(self, op: Operation) -> Sequence[Place]:
        wanted = self._options.place
        if wanted is None:
            return op.places[:1]
        return [place for place in op.places if wanted in (place, "both")]

    def _measure(self, case: Case) -> list[Record]:
        pattern = Pattern(case.dtype, case.redop, case.ranks)
        batches: dict[str, Batch] = {}
        wrong: dict[str, int | None] = {}
        for name, peer in self._peers.items():
            tried = self._agreed(name, partial(self._verified, peer, case, pattern))
            if tried:
                batches[name], wrong[name] = tried
        for kind in {peer.memory for peer in self._peers.values()}:
            self._memory.buffers(case, kind).clear(1 if case.redop == "prod" else 0)
        if not batches:
            return []
        samples = collect(batches, case.op.trips, self._ranks, self._plan)
        found = [
            records.record(case, name, self._meta["mpi"], samples[name], wrong[name])
            for name in batches
        ]
        return records.compared(found, {n for n, p in self._peers.items() if p.competes})

    def _verified(self, peer: Peer, case: Case, pattern: Pattern) -> tuple[Batch, int | None]:
        buffers = self._memory.buffers(case, peer.memory)
        batch = peer.batch(case, buffers)
        if not peer.verified:
            return batch, None
        first = next(n for n, p in self._peers.items() if p.verified) == peer.name
        plant = self._options.plant if first else None
        return batch, count_wrong(case, buffers, pattern, batch, plant)

    def _agreed(
        self, name: str, attempt: Callable[[], tuple[Batch, int | None]]
    ) -> tuple[Batch, int | None] | None:
        """Return an attempt's batch and the wrong elements of all ranks; None if one cannot."""
        result, problem = None, ""
        try:
            result = attempt()
        except pycomm.UnsupportedError as error:
            problem = str(error)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        everyone = self._ranks.gathered((problem, result[1] if result else None))
        problems = [p for p, _ in everyone if p]
        if problems or result is None:
            self._skip(name, problems[0])
            return None
        counts = [w for _, w in everyone]
        return result[0], None if None in counts else sum(counts)

    def _skip(self, name: str, reason: str) -> None:
        """Say once why an implementation is missing from here on."""
        if self._missing.get(name) != reason:
            self._missing[name] = reason
            self._say([f"# not measured: {name}: {reason}"])

    def _finish(self) -> None:
        for peer in self._peers.values():
            peer.close()
        if self._ranks.rank == 0:
            if self._options.json:
                records.write(self._options.json, self._meta, self._records)
            if self._options.plot:
                from bench.drawing import draw

                draw([(self._meta, self._records)], self._options.plot)
        self._ranks.rest()

    def _verdict(self) -> int:
        wrong = sum(record.wrong or 0 for record in self._records)
        if wrong:
            self._say([f"# FAILED: {wrong} wrong elements"])
        elif not self._records:
            self._say(["# FAILED: nothing was measured"])
        return int(wrong > 0 or not self._records)

    def _say(self, lines: Iterable[Any]) -> None:
        if self._ranks.rank == 0:
            for line in lines:
                print(line, flush=True)


def opened_gpu(ranks: Ranks) -> Gpu:
    """Return this rank's GPU.

    Raises:
        UnavailableError: on all ranks, if one has none; in one sentence.
    """
    gpu, problem = None, ""
    try:
        gpu = Gpu(ranks.comm)
    except MissingError as error:
        problem = str(error)
    problems = [p for p in ranks.gathered(problem) if p]
    if gpu is None or problems:
        raise UnavailableError(problems[0])
    return gpu


def opened(
    names: Sequence[str], ranks: Ranks, device: str = "cpu"
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Set up implementations; return those that can be used on all ranks, and why others cannot."""
    peers: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        problem = ""
        if device not in PEERS[name].devices:
            missing[name] = f"it has no arrays on {device}"
            continue
        try:
            peers[name] = PEERS[name](ranks)
        except UnavailableError as error:
            problem = str(error)
        problems = [p for p in ranks.gathered(problem) if p]
        if problems:
            missing[name] = problems[0]
            peers.pop(name, None)
    return peers, missing


def _check(options: Options, ranks: int) -> None:
    if options.root >= ranks:
        raise click.UsageError(f"--root {options.root} is not one of {ranks} ranks")
    if ranks % 2 and any(op.message for op in options.ops):
        raise click.UsageError(f"messages are between pairs: {ranks} ranks are an odd number")
