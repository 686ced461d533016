"""DeepSpeed's shared-memory all-reduce for inference on CPUs; compiled at its first use."""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.memory import Buffers
from bench.operations import Case
from bench.peers.base import Call, Peer, UnavailableError, as_tensor, peer
from bench.ranks import Ranks
from pycomm import UnsupportedError

_DTYPES = ("float16", "bfloat16", "float32")
_LARGEST_BYTES = 2**31 - 1
_SHARED_BYTES = 70 << 20
"""Of /dev/shm for each rank; where there is less, a rank dies of SIGBUS."""


@peer("deepspeed")
class DeepSpeed(Peer):
    """Sums of narrow floats among the ranks of one host."""

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        if ranks.hosts > 1:
            raise UnavailableError("its ranks have to be on one host")
        free = os.statvfs("/dev/shm")
        if free.f_bavail * free.f_frsize < _SHARED_BYTES * ranks.size:
            raise UnavailableError(
                f"/dev/shm has less than {_SHARED_BYTES * ranks.size} bytes free"
            )
        name = f"{os.getpid()}"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        settings = {"MASTER_ADDR": "pycomm-bench", "MASTER_PORT": ranks.broadcast(name)}
        os.environ.update(settings | {"LOCAL_SIZE": str(ranks.size)})
        _load_in_turn(ranks).initialize(ranks.size, ranks.rank)
        ranks.rest()
        if ranks.rank == 0:
            for file in Path("/dev/shm").glob(f"*pycomm-bench*{name}*"):
                file.unlink()
        import torch

        self._all_reduce = torch.ops.deepspeed.inference_all_reduce_

    def version(self) -> str:
        """Return DeepSpeed's version."""
        return f"deepspeed {version('deepspeed')}"

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return the all-reduce; it has nothing else."""
        if case.op.name != "all_reduce":
            raise UnsupportedError(f"deepspeed has no {case.op.name} in shared memory")
        if case.redop != "sum" or case.dtype not in _DTYPES:
            raise UnsupportedError(f"deepspeed has no {case.redop} of {case.dtype}")
        if case.size_bytes > _LARGEST_BYTES:
            raise UnsupportedError(f"deepspeed counts to {_LARGEST_BYTES} bytes")
        return partial(self._all_reduce, as_tensor(buffers.x))


def _load_in_turn(ranks: Ranks) -> Any:
    """Return the extension; rank 0 compiles it, if need be, before the others load it."""
    module, problem = _load() if ranks.rank == 0 else (None, "")
    ranks.rest()
    problem = ranks.broadcast(problem)
    if not problem and ranks.rank > 0:
        module, problem = _load()
    if problem:
        raise UnavailableError(problem)
    return module


def _load() -> tuple[Any, str]:
    try:
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        return ShareMemCommBuilder().load(verbose=False), ""
    except (ImportError, RuntimeError, OSError) as error:
        return None, str(error).strip().splitlines()[0]
