"""pycomm: collective communication between ranks, and trainers on top of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pycomm.algorithms
from pycomm.communicator import Communicator
from pycomm.errors import (
    ArgumentError,
    CommError,
    CommTimeoutError,
    DeadlockError,
    DepartedError,
    DivergedError,
    MismatchError,
    MissingError,
    NonFiniteError,
    RankFailedError,
    StageError,
    StateLostError,
    UnsupportedError,
)
from pycomm.kernels.numba_ops import reduce_op
from pycomm.mesh import Mesh
from pycomm.startup import init
from pycomm.transport.mailbox import ANY
from pycomm.types import ReduceOp, premul_sum
from pycomm.work import Work

if TYPE_CHECKING:
    from pycomm.parallel.data_parallel import DataParallel
    from pycomm.parallel.tensor import tensor_parallel, vocabulary_cross_entropy
    from pycomm.trainers.data_parallel import DataParallelTrainer
    from pycomm.trainers.model_parallel import ModelParallelTrainer

_NEED_TORCH = {
    "DataParallel": "pycomm.parallel.data_parallel",
    "DataParallelTrainer": "pycomm.trainers.data_parallel",
    "ModelParallelTrainer": "pycomm.trainers.model_parallel",
    "tensor_parallel": "pycomm.parallel.tensor",
    "vocabulary_cross_entropy": "pycomm.parallel.tensor",
}

__all__ = [
    "ANY",
    "ArgumentError",
    "CommError",
    "CommTimeoutError",
    "Communicator",
    "DataParallel",
    "DataParallelTrainer",
    "DeadlockError",
    "DepartedError",
    "DivergedError",
    "Mesh",
    "MismatchError",
    "MissingError",
    "ModelParallelTrainer",
    "NonFiniteError",
    "RankFailedError",
    "StageError",
    "StateLostError",
    "ReduceOp",
    "UnsupportedError",
    "Work",
    "init",
    "premul_sum",
    "reduce_op",
    "tensor_parallel",
    "vocabulary_cross_entropy",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'pycomm' has no attribute {name!r}")
