"""The exceptions of pycomm: what went wrong between ranks, with the values and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class CommError(RuntimeError):
    """The base of every error that pycomm raises.

    Attributes:
        told: how many ranks raise it together, those of a communicator; 0: nobody has agreed.
    """

    told = 0


class ArgumentError(CommError, ValueError):
    """An argument cannot be used; nothing was sent and no memory changed."""


class UnsupportedError(CommError, TypeError):
    """A dtype, operation or kind of array is not supported; the message names an alternative."""


class MissingError(CommError, ImportError):
    """A package that this needs is not installed; the message says how to get it."""


class MismatchError(CommError):
    """Ranks of one communicator called different operations; raised on every one of them."""

    @classmethod
    def of_calls(cls, rank: int, calls: Sequence[str]) -> MismatchError:
        """Return the error of `rank` for what every rank says that it called; "" for no answer."""
        lines = [f"  rank {other}: {call or '(no answer)'}" for other, call in enumerate(calls)]
        head = f"rank {rank}: the ranks made different calls; no memory was changed"
        return cls("\n".join([head, *lines]))


class DivergedError(MismatchError):
    """Replicas of a model that must be equal are not; raised on every rank that holds one."""


class NonFiniteError(CommError):
    """A gradient is infinite or not a number; raised on every rank."""


class StageError(CommError):
    """A stage of a model failed, or its loss; raised on every rank of the pipeline."""


class CommTimeoutError(CommError, TimeoutError):
    """A communicator made no progress for its timeout."""


class UnreachableError(CommError):
    """The other side of a message has closed its communicator, or its memory cannot be reached."""


class DeadlockError(CommError):
    """Ranks wait for each other in a cycle."""


class DepartedError(CommError):
    """A rank that is waited for has left: it exited or closed its communicator."""


class RankFailedError(CommError):
    """A rank of the communicator died.

    Attributes:
        ranks: those of the communicator that are known to be dead.
    """

    def __init__(self, message: str = "", ranks: tuple[int, ...] = ()):
        super().__init__(message)
        self.ranks = ranks


class StateLostError(RankFailedError):
    """Ranks died that alone had a part of what is trained; raised on every survivor."""


UNUSABLE = (CommTimeoutError, DeadlockError, DepartedError, RankFailedError)
"""After these the ranks of a communicator cannot agree any more; each of them has its own."""
