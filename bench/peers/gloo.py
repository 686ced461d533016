"""Gloo, through torch.distributed on tensors over the same memory."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from functools import partial
from typing import Any

from bench.memory import Buffers
from bench.operations import Case
from bench.peers.base import Call, Peer, Start, UnavailableError, as_tensor, peer
from bench.ranks import Ranks
from pycomm import UnsupportedError

_OPS = {"sum": "SUM", "prod": "PRODUCT", "min": "MIN", "max": "MAX"}
_OPS |= {"band": "BAND", "bor": "BOR", "bxor": "BXOR"}


@peer("gloo")
class Gloo(Peer):
    """torch.distributed's backend for CPUs, as DDP uses it; of CUDA tensors it takes some.

    For those torch documents all_reduce and broadcast; other collectives depend on its version.
    """

    devices = ("cpu", "cuda")

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        try:
            import torch
            import torch.distributed as dist
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._torch, self._dist = torch, dist
        host = "127.0.0.1" if ranks.hosts == 1 else ranks.broadcast(socket.gethostname())
        if ranks.hosts == 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo",
            store=self._store(host),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timedelta(minutes=5),
        )

    def _store(self, host: str) -> Any:
        connect = partial(self._dist.TCPStore, host, world_size=self.ranks.size)
        if self.ranks.rank == 0:
            store = connect(port=0, is_master=True, wait_for_workers=False)
            self.ranks.broadcast(store.port)
            return store
        return connect(port=self.ranks.broadcast(None))

    def version(self) -> str:
        """Return torch's version, which Gloo is part of."""
        return f"gloo of torch {self._torch.__version__}"

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return torch.distributed's function with its arguments."""
        self._check(buffers)
        if case.op.name == "barrier":
            return self._dist.barrier
        if case.place == "in" and "out" in case.op.places:
            raise UnsupportedError(f"torch.distributed has no {case.op.name} in place")
        x, out = as_tensor(buffers.x), as_tensor(buffers.out)
        return getattr(self, f"_{case.op.name}")(case, x, out)

    def starting(self, case: Case, buffers: Buffers) -> Start:
        """Return all_reduce with `async_op`."""
        x, op, start = as_tensor(buffers.x), self._op(case), self._dist.all_reduce
        return lambda: start(x, op, async_op=True).wait

    def message(self, case: Case, buffers: Buffers) -> tuple[Call, Call]:
        """Return send and recv."""
        if buffers.wait is not None:
            raise UnsupportedError("gloo sends no CUDA tensors")
        x, out = as_tensor(buffers.x), as_tensor(buffers.out)

        def receive() -> None:
            self._dist.recv(out, case.partner)

        return partial(self._dist.send, x, case.partner), receive

    def _check(self, buffers: Buffers) -> None:
        if buffers.wait is not None and not self._torch.cuda.is_available():
            raise UnsupportedError("this torch is not built for CUDA")

    def close(self) -> None:
        """End the process group."""
        self._dist.destroy_process_group()

    def _single(self, name: str, before: str) -> Any:
        """Return the function on single tensors, under the name that this torch has it by."""
        return getattr(self._dist, f"{name}_single", None) or getattr(self._dist, name + before)

    def _op(self, case: Case) -> Any:
        if case.redop not in _OPS:
            raise UnsupportedError(f"gloo has no {case.redop}")
        return getattr(self._dist.ReduceOp, _OPS[case.redop])

    def _all_reduce(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._dist.all_reduce, x, self._op(case))

    def _reduce(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._dist.reduce, x, case.root, self._op(case))

    def _reduce_scatter(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._single("reduce_scatter", "_tensor"), out, x, self._op(case))

    def _all_gather(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._single("all_gather", "_into_tensor"), out, x)

    def _all_to_all(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._dist.all_to_all_single, out, x)

    def _broadcast(self, case: Case, x: Any, out: Any) -> Call:
        return partial(self._dist.broadcast, x, case.root)

    def _gather(self, case: Case, x: Any, out: Any) -> Call:
        chunks = list(out.chunk(case.ranks)) if case.rank == case.root else None
        return partial(self._dist.gather, x, chunks, case.root)

    def _scatter(self, case: Case, x: Any, out: Any) -> Call:
        chunks = list(x.chunk(case.ranks)) if case.rank == case.root else None
        return partial(self._dist.scatter, out, chunks, case.root)
