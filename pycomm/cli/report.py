"""The text of `pycomm doctor`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pycomm.cli.facts import Facts
from pycomm.config import SETTINGS
from pycomm.costs import Costs

_WIDTH = 100


def report(ranks: Sequence[Facts], problems: Sequence[str]) -> str:
    """Return the facts of all ranks and what is wrong, for people."""
    first = ranks[0]
    hosts = list(dict.fromkeys(facts.host for facts in ranks))
    lines = [
        "versions: " + ", ".join(f"{name} {number}" for name, number in first.versions.items()),
        f"MPI: {first.mpi}, thread level {first.threads}",
        f"ranks: {counted(len(ranks), 'rank')} on {counted(len(hosts), 'host')}",
    ]
    for host in hosts:
        lines += _host({rank: facts for rank, facts in enumerate(ranks) if facts.host == host})
    lines += ["costs, by which algorithms are chosen:", *links(first.costs)]
    lines += ["settings, * where the environment sets them:", *_settings(first)]
    lines += ["problems:" if problems else "problems: none found"]
    for number, problem in enumerate(problems, 1):
        start = f"  {number}. "
        lines += textwrap.wrap(problem, _WIDTH, initial_indent=start, subsequent_indent="     ")
    return "\n".join(lines)


def links(costs: Costs) -> list[str]:
    """Return what each link costs, and how that is known."""
    return [
        f"  shared memory: {costs.memory}",
        f"  messages in a host: {costs.messages}",
        f"  messages between hosts: {costs.hosts}",
    ]


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as spans, such as 0-3,8."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends))


def counted(number: int, what: str) -> str:
    """Return for instance 1 rank, 2 ranks."""
    return f"{number} {what}{'s' * (number != 1)}"


def _host(mates: dict[int, Facts]) -> list[str]:
    first = next(iter(mates.values()))
    sharing = "with each other" if first.mates == len(mates) > 1 else "no"
    same = len({facts.cores for facts in mates.values()}) == 1
    cores = spans(first.cores) if same else ""
    each = "" if same else "; ".join(f"rank {r}: {spans(f.cores)}" for r, f in mates.items())
    return [
        f"  rank{'s' * (len(mates) > 1)} {spans(list(mates))} on {first.machine}",
        f"    cores they may use: {cores or each}",
        f"    shared memory: {sharing if len(mates) > 1 else 'one rank needs none'}, "
        f"huge pages: {first.huge_pages or 'none'}",
        f"    loops: {', '.join(dict.fromkeys(facts.level for facts in mates.values()))}",
    ]


def _settings(facts: Facts) -> list[str]:
    return [
        f"{' *'[name in facts.settings]} {name}={facts.settings.get(name, option.default)}: "
        f"{option.metadata['help']}"
        for name, option in SETTINGS.items()
    ]
