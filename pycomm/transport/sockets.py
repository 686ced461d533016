"""Which socket of a host a process runs on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_CORES = Path("/sys/devices/system/cpu")
UNKNOWN = -1


def socket_of(cores: Iterable[int], topology: Path = _CORES) -> int:
    """Return the number of the socket that all `cores` are on; -1 if on several, or if unknown.

    Args:
        cores: those that a process may run on.
        topology: the folder with what the kernel says about each core.
    """
    files = (topology / f"cpu{core}" / "topology" / "physical_package_id" for core in cores)
    try:
        found = {int(file.read_text()) for file in files}
    except (OSError, ValueError):
        return UNKNOWN
    return found.pop() if len(found) == 1 else UNKNOWN
