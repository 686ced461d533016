"""pycomm itself: on ordinary arrays, on symmetric ones, on tensors, with arrays of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.memory import Buffers
from bench.operations import Case
from bench.peers.base import Call, Peer, Start, UnavailableError, as_tensor, peer
from bench.ranks import Ranks
from pycomm import UnsupportedError


@peer("pycomm")
class Pycomm(Peer):
    """Arrays as NumPy allocates them, or as CUDA does."""

    devices = ("cpu", "cuda")
    competes = False

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return the Communicator's method with its arguments."""
        if case.op.name == "barrier":
            return self.ranks.comm.barrier
        method = getattr(self.ranks.comm, case.op.name)
        return partial(method, *self._arguments(case, buffers), **_named(case))

    def _arguments(self, case: Case, buffers: Buffers) -> list[Any]:
        x, out = self._array(buffers.x), self._array(buffers.out)
        name = case.op.name
        if name in ("all_reduce", "reduce", "broadcast"):
            return [x]
        if name == "reduce_scatter":
            return [x, case.redop, out]
        at_root = case.rank == case.root
        if name == "all_gather":
            return [x, out.reshape(case.ranks, -1)]
        if name == "all_to_all":
            return [x.reshape(case.ranks, -1), out.reshape(case.ranks, -1)]
        if name == "gather":
            return [x, case.root, out.reshape(case.ranks, -1) if at_root else None]
        return [x.reshape(case.ranks, -1) if at_root else None, case.root, out]

    def _array(self, array: Any) -> Any:
        return array

    def starting(self, case: Case, buffers: Buffers) -> Start:
        """Return all_reduce with `async_op`."""
        x, start = self._array(buffers.x), self.ranks.comm.all_reduce
        return lambda: start(x, case.redop, async_op=True).wait

    def message(self, case: Case, buffers: Buffers) -> tuple[Call, Call]:
        """Return send, and recv with `out`."""
        x, out = self._array(buffers.x), self._array(buffers.out)

        def receive() -> None:
            self.ranks.comm.recv(case.partner, out=out)

        return partial(self.ranks.comm.send, x, case.partner), receive


def _named(case: Case) -> dict[str, Any]:
    named: dict[str, Any] = {}
    if case.op.name in ("all_reduce", "reduce"):
        named["op"] = case.redop
    if case.op.name in ("reduce", "broadcast"):
        named["root"] = case.root
    return named


@peer("pycomm-symmetric")
class Symmetric(Pycomm):
    """Arrays from `comm.empty`."""

    memory = "symmetric"


@peer("pycomm-torch")
class Torch(Pycomm):
    """Torch tensors on ordinary memory: what their argument checking costs."""

    devices = ("cpu",)

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise UnavailableError(str(error)) from error

    def _array(self, array: Any) -> Any:
        return as_tensor(array)


@peer("pycomm-alloc")
class Allocating(Pycomm):
    """Messages received with out=None: each is a new array."""

    devices = ("cpu",)

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """There is nothing to allocate in these."""
        raise UnsupportedError(f"{self.name} is for messages only")

    def message(self, case: Case, buffers: Buffers) -> tuple[Call, Call]:
        """Return send, and recv without `out`."""
        send = partial(self.ranks.comm.send, buffers.x, case.partner)
        return send, partial(self.ranks.comm.recv, case.partner)
