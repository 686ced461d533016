"""Which cores the processes of a host may use: whether those are enough, and on which socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

UNKNOWN = -1
_TOPOLOGY = Path("/sys/devices/system/cpu")


def are_crowded(affinities: Sequence[Collection[int]]) -> bool:
    """Say whether any of some processes have to share cores.

    Args:
        affinities: the cores that each of the processes may use.
    """
    processes = Counter(map(frozenset, affinities))
    every = frozenset[int]().union(*processes)
    return any(
        sum(count for other, count in processes.items() if other <= cores) > len(cores)
        for cores in {every, *processes}
    )


def socket_of(cores: Iterable[int], topology: Path = _TOPOLOGY) -> int:
    """Return the number of the socket that all `cores` are on; UNKNOWN if several, or not known.

    Args:
        cores: those that a process may use.
        topology: the folder with what the kernel says about each core.
    """
    files = (topology / f"cpu{core}" / "topology" / "physical_package_id" for core in cores)
    try:
        found = {int(file.read_text()) for file in files}
    except (OSError, ValueError):
        return UNKNOWN
    return found.pop() if len(found) == 1 else UNKNOWN
