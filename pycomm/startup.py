"""The way into a job: the Communicator of all ranks that the launcher started."""

from __future__ import annotations

from pycomm.communicator import Communicator
from pycomm.config import Config, checked_timeout
from pycomm.errors import ArgumentError, CommError
from pycomm.world import World

_everyone: Communicator | None = None


def init(timeout: float | None = None) -> Communicator:
    """Return the Communicator of all ranks that the launcher started; the first call is collective.

    Args:
        timeout: seconds that an operation may go without progress; None is PYCOMM_TIMEOUT, or 300.

    Raises:
        ArgumentError: `timeout` is no positive number, or another than that of the first call.
        CommError: the Communicator was closed.
    """
    global _everyone
    if timeout is not None:
        timeout = checked_timeout(timeout)
    if _everyone is None:
        config = Config.from_environment()
        world = World.of_mpi(config, config.timeout if timeout is None else timeout)
        _everyone = Communicator(world, range(world.wire.size), world.new_context())
    elif _everyone.closed:
        raise CommError(
            f"rank {_everyone.rank}: the communicator of all ranks was closed, and a process has "
            "only that one: close it when nothing more is to be sent"
        )
    elif timeout not in (None, _everyone.timeout):
        raise ArgumentError(
            f"timeout={timeout:g} is not the {_everyone.timeout:g} s of the first call"
        )
    return _everyone
