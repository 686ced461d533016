"""Things in shared memory: one process makes them, the others of its host open them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

_logger = logging.getLogger("pycomm")

Exchange = Callable[[Any], list[Any]]
"""Gathers one small object of every rank, in rank order."""


class Shared(Protocol):
    """What the extension keeps in a segment: its owner's descriptor and nonce open it elsewhere."""

    @property
    def fd(self) -> int:
        """Its file descriptor in the process that made it."""

    @property
    def nonce(self) -> int:
        """What tells it from others."""

    def close_descriptor(self) -> None:
        """Close the descriptor, once everyone has the segment open."""


S = TypeVar("S", bound=Shared)


def share(
    create: Callable[[], S],
    open: Callable[[int, int, int], S],
    exchange: Exchange,
    creator: int | None,
) -> S | None:
    """Create something in shared memory, or open what another process of this host created.

    Args:
        create: makes it.
        open: opens it by (pid, fd, nonce).
        exchange: gathers one object of every rank; called twice.
        creator: the rank that creates it for this one; None creates it here.

    Returns:
        None on every rank if any could not.
    """

    def attempt(make: Callable[[], S]) -> S | None:
        try:
            return make()
        except (OSError, RuntimeError) as error:
            _logger.warning("process %d cannot share memory: %s", os.getpid(), error)
            return None

    mine = attempt(create) if creator is None else None
    rows = exchange((os.getpid(), mine.fd, mine.nonce) if mine else None)
    if creator is not None and (where := rows[creator]):
        pid, fd, nonce = where
        mine = attempt(lambda: open(pid, fd, nonce))
    if not all(exchange(mine is not None)) or mine is None:
        return None
    mine.close_descriptor()
    return mine


def host_identity() -> tuple[str, str, int]:
    """Return host, boot and PID namespace: equal for two processes that can share memory."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return socket.gethostname(), boot, os.stat("/proc/self/ns/pid").st_ino
