"""Measures what hides behind computing: mpirun -np 2 python bench/overlap.py [OPTIONS]."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported

import click
import numpy as np

from bench import environment, options, outputs, records
from bench.computing import LOOPS, Compute, loop, seconds
from bench.memory import Memory
from bench.operations import COLLECTIVES, Case
from bench.patterns import Pattern
from bench.peers import PEERS, Peer
from bench.peers.base import Start, repeated
from bench.ranks import Ranks
from bench.runner import opened
from bench.sampling import Plan, Samples, collect
from bench.sizes import Names, Sizes
from bench.verify import Batch, count_wrong
from pycomm.types import DTYPES

_LEAST_COMPUTE_S = 100e-6
_ONE_OPERATION_US = 1.0
"""Every sample is of one operation, as late ranks have to be late for each."""


@dataclass(frozen=True)
class Overlap:
    """The result of one implementation; bench/README.md says what the fields are."""

    impl: str
    size_bytes: int
    compute: str
    peers: str
    ranks: int
    mpi: str
    samples: int
    t_comm_us: float
    t_compute_us: float
    t_both_us: float
    t_both_q25_us: float
    t_both_q75_us: float
    hidden_percent: float
    wrong: int


def hidden_percent(comm: float, compute: float, both: float) -> float:
    """Return how much of `comm` does not show in `both`; 0 if they take longer together."""
    return 100 * min(1.0, max(0.0, (compute + comm - both) / comm))


def row(cells: Sequence[Any]) -> str:
    """Return one line of the table, of the fields of an Overlap or of their names."""
    widths = (17, 10, 8, 6, 5, 18, 7, 11, 12, 11, 13, 13, 14, 5)
    texts = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return " ".join(text.rjust(width) for text, width in zip(texts, widths))


class Measuring:
    """One run; all ranks make the same calls in the same order."""

    def __init__(self, impl: Sequence[str], dtype: str, plan: Plan, largest: int):
        self.ranks = Ranks()
        self._peers, missing = opened(impl, self.ranks)
        self._dtype, self._plan = dtype, plan
        self._memory = Memory(self.ranks, largest)
        versions = [peer.version() for peer in self._peers.values()]
        self.meta = environment.describe(self.ranks, versions, missing)

    def measure(self, nbytes: int, kind: str, late: bool) -> Iterator[Overlap]:
        """Measure all implementations in turn."""
        ranks = self.ranks
        count = nbytes // DTYPES[self._dtype].itemsize
        op = COLLECTIVES["all_reduce"]
        case = Case(op, self._dtype, "sum", -1, "in", count, ranks.rank, ranks.size)
        wrong, batches = {}, {}
        for name, peer in self._peers.items():
            start = peer.starting(case, self._memory.buffers(case, peer.memory))
            wrong[name] = self._verified(peer, case, start)
            for phase, batch in self._phases(start, kind, late).items():
                batches[f"{name} {phase}"] = batch
        samples = collect(batches, 1, ranks, self._plan)
        for name in self._peers:
            three = [samples[f"{name} {phase}"] for phase in ("comm", "compute", "both")]
            yield self._result(name, case, kind, late, three, wrong[name])

    def close(self) -> None:
        """Leave together."""
        for peer in self._peers.values():
            peer.close()
        self.ranks.rest()

    def _verified(self, peer: Peer, case: Case, start: Start) -> int:
        buffers = self._memory.buffers(case, peer.memory)
        pattern = Pattern(case.dtype, case.redop, case.ranks)
        once = repeated(partial(_in_sequence, _nothing, start, _nothing))
        wrong = count_wrong(case, buffers, pattern, once)
        buffers.clear(0)
        return sum(self.ranks.gathered(wrong))

    def _phases(self, start: Start, kind: str, late: bool) -> dict[str, Batch]:
        """Return the operation alone, as long a loop that computes alone, and both at once.

        With `late`, odd ranks compute half as long before each operation, too.
        """
        pure_s = self.ranks.largest(seconds(lambda: start()()))
        duration_s = max(_LEAST_COMPUTE_S, 2 * pure_s)
        compute = loop(kind, duration_s)
        lag = loop(kind, duration_s / 2) if late and self.ranks.rank % 2 else _nothing
        return {
            "comm": repeated(partial(_in_sequence, lag, start, _nothing)),
            "compute": repeated(compute),
            "both": repeated(partial(_in_sequence, lag, start, compute)),
        }

    def _result(
        self, name: str, case: Case, kind: str, late: bool, three: Sequence[Samples], wrong: int
    ) -> Overlap:
        step = 2 if late else 1
        times = [samples.per_rank_us[::step].max(axis=0) for samples in three]
        comm, compute, both = (float(np.median(t)) for t in times)
        low, high = map(float, np.quantile(times[2], (0.25, 0.75)))
        return Overlap(
            impl=name,
            size_bytes=case.size_bytes,
            compute=kind,
            peers="late" if late else "even",
            ranks=case.ranks,
            mpi=self.meta["mpi"],
            samples=times[2].size,
            t_comm_us=comm,
            t_compute_us=compute,
            t_both_us=both,
            t_both_q25_us=low,
            t_both_q75_us=high,
            hidden_percent=hidden_percent(comm, compute, both),
            wrong=wrong,
        )


def _nothing() -> None:
    pass


def _in_sequence(lag: Compute, start: Start, compute: Compute) -> None:
    lag()
    wait = start()
    compute()
    wait()


def spare_cores(meta: dict[str, Any]) -> str:
    """Say whether there is a core that does not compute; only then can copying hide."""
    spare = meta["cores"] - meta["ranks"]
    if spare > 0:
        return f"# spare cores: {spare}"
    return "# spare cores: none, so only waiting can hide: copying takes time from computing"


def draw(results: Sequence[Overlap], path: Path) -> None:
    """Draw bars of what is hidden, a panel for each kind of computing and of peers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((r.compute, r.peers) for r in results))
    names = list(dict.fromkeys(r.impl for r in results))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 4), sharey=True, squeeze=False
    )
    for plot, panel in zip(axes[0], panels):
        for i, name in enumerate(names):
            found = [r for r in results if (r.compute, r.peers, r.impl) == (*panel, name)]
            at = np.arange(len(found)) + 0.8 * i / len(names)
            plot.bar(at, [r.hidden_percent for r in found], 0.8 / len(names), label=name)
            plot.set_xticks(range(len(found)), [str(r.size_bytes) for r in found])
        plot.set_title("{}, {} peers".format(*panel))
        plot.set_xlabel("bytes")
    axes[0][0].set_ylabel("hidden, % of the time of all_reduce")
    axes[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140, bbox_inches="tight")


@click.command(context_settings=options.SETTINGS)
@click.option("--sizes", type=Sizes(), default="64K,1M,25M", help="Bytes; or a list: 4,32K,25M.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@click.option("--impl", type=Names(PEERS), default="pycomm,pycomm-symmetric,mpi4py,gloo")
@click.option("--compute", type=Names(LOOPS), default="all", help="Of python, matmul.")
@click.option("--peers", type=Names(["even", "late"]), default="all", help="Of even, late.")
@options.seconds(0.5, "implementation, size, loop and kind of peers")
@options.ITERATIONS
@outputs.JSON
@outputs.plot("what is hidden")
def main(**chosen: Any) -> None:
    """Time an asynchronous all_reduce, a loop that computes, and both at once, in turn."""
    plan = Plan(_ONE_OPERATION_US, chosen["seconds"], chosen["iterations"])
    measuring = Measuring(chosen["impl"], chosen["dtype"], plan, max(chosen["sizes"]))
    first = measuring.ranks.rank == 0
    say = partial(print, flush=True) if first else lambda *words: None
    say("\n".join([*environment.header(measuring.meta), spare_cores(measuring.meta)]))
    say(row([field.name for field in fields(Overlap)]))
    results = []
    for nbytes, kind, peers in product(chosen["sizes"], chosen["compute"], chosen["peers"]):
        for result in measuring.measure(nbytes, kind, peers == "late"):
            results.append(result)
            say(row([getattr(result, field.name) for field in fields(Overlap)]))
    if first and chosen["json"]:
        records.write(chosen["json"], measuring.meta, results)
    if first and chosen["plot"]:
        draw(results, chosen["plot"])
    measuring.close()
    sys.exit(any(result.wrong for result in results))


if __name__ == "__main__":
    options.share_cores()
    main()
