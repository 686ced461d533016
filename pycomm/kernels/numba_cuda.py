"""A user's reduce operations on a GPU: reduce kernels that Numba generates, as PTX to launch.

Numba only compiles; whoever launches other kernels launches these too, on the same stream.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pycomm.errors import CommError, MissingError, UnsupportedError
from pycomm.kernels.launcher import Program
from pycomm.kernels.numba_floats import loading, stored_type, storing
from pycomm.kernels.numba_ops import UserOp, import_numba, reason
from pycomm.types import DType

Function = Callable[..., Any]

_ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
_FUSED = re.compile(r"\bfma\.")
_patching = threading.Lock()


@lru_cache(maxsize=1024)
def reduce_program(
    op: UserOp, dtype: DType, inputs: int, outputs: int, capability: tuple[int, int]
) -> Program:
    """Return the reduction of so many inputs; its parameters are inputs, outputs, count.

    Args:
        op: resolved for the dtype, see `UserOp.on`, and so known to compile and to fit on the CPU.
        dtype: of inputs and outputs.
        inputs: how many, at least 1.
        outputs: how many, at least 1.
        capability: the device's compute capability, such as (9, 0).

    Raises:
        UnsupportedError: Numba cannot compile the function for a GPU.
        MissingError: what Numba needs to compile for a GPU is not there.
    """
    numba, cuda = _import_cuda()
    wide, element, device = *_types(numba, dtype), _device(cuda)
    from pycomm.kernels.numba_kernels import reduce_kernel

    kernel = reduce_kernel(
        wide, device(loading(dtype)), device(op.function), device(storing(dtype))
    )
    pointer, tuples = numba.types.CPointer(element), numba.types.UniTuple
    parameters = (tuples(pointer, inputs), tuples(pointer, outputs), numba.types.int64)
    return _compiled(op, dtype, kernel, parameters, capability)


@lru_cache(maxsize=1024)
def accumulate_program(op: UserOp, dtype: DType, capability: tuple[int, int]) -> Program:
    """Return partial = partial op widened(x); its parameters are partial, x, count.

    Arguments and errors are those of `reduce_program`.
    """
    numba, cuda = _import_cuda()
    wide, element, device = *_types(numba, dtype), _device(cuda)
    from pycomm.kernels.numba_kernels import accumulate_kernel

    kernel = accumulate_kernel(
        wide, dtype.family == "bool", device(loading(dtype)), device(op.function)
    )
    pointer = numba.types.CPointer
    partial_type = numba.from_dtype(stored_type(dtype.partial))
    parameters = (pointer(partial_type), pointer(element), numba.types.int64)
    return _compiled(op, dtype, kernel, parameters, capability)


def _types(numba: Any, dtype: DType) -> tuple[Any, Any]:
    """Return Numba's types of the accumulator and of a stored element."""
    return numba.from_dtype(np.dtype(dtype.accumulator)), numba.from_dtype(stored_type(dtype))


def _device(cuda: Any) -> Function:
    return partial(cuda.jit, device=True)


def _compiled(
    op: UserOp, dtype: DType, kernel: Function, parameters: tuple, capability: tuple[int, int]
) -> Program:
    numba, cuda = _import_cuda()
    try:
        _check_contraction(numba, cuda, capability)
        ptx = _ptx(numba, cuda, kernel, parameters, capability)
    except CommError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"{op.name} does not work on {dtype.name} on a GPU: {reason(error)}"
        ) from None
    return Program(f"{op.name} on {dtype.name}", ptx, _entry(ptx))


def _ptx(
    numba: Any, cuda: Any, kernel: Function, parameters: tuple, capability: tuple[int, int]
) -> str:
    signature = numba.types.void(*parameters)
    try:
        with _uncontracted():
            ptx, _ = cuda.compile(kernel, signature, device=False, abi="numba", cc=capability)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingError(
            "pycomm.reduce_op on a GPU needs what Numba compiles with, NVVM and NVRTC: "
            f"pip install 'pycomm[cuda13]', or [cuda12] ({reason(error)})"
        ) from None
    return str(ptx)


def _entry(ptx: str) -> str:
    found = _ENTRY.search(ptx)
    if found is None:
        raise UnsupportedError("Numba's PTX has no kernel in it: pycomm knows numba-cuda to 0.30")
    return found[1]


@contextmanager
def _uncontracted() -> Iterator[None]:
    """Compile without fused multiply-add, which Numba has no option for.

    `nvvm.compile_ir` is where its options meet the compiler's.
    """
    from numba.cuda.cudadrv import nvvm

    with _patching:
        original = nvvm.compile_ir
        nvvm.compile_ir = partial(original, fma=False)
        try:
            yield
        finally:
            nvvm.compile_ir = original


@lru_cache(maxsize=1)
def _check_contraction(numba: Any, cuda: Any, capability: tuple[int, int]) -> None:
    """Raise if a×b + a is one fused operation after all, in a Numba to come."""
    float32 = numba.types.float32

    def probe(x: Any) -> None:
        x[0] = x[1] * x[2] + x[3]

    ptx = _ptx(numba, cuda, probe, (numba.types.CPointer(float32),), capability)
    if _FUSED.search(ptx):
        raise UnsupportedError(
            f"Numba {numba.__version__} fuses multiplications with additions on a GPU, which gives "
            "other bits than the CPU: use numba-cuda 0.30"
        )


def _import_cuda() -> tuple[Any, Any]:
    numba = import_numba()
    try:
        from numba import cuda
    except ImportError as error:
        raise MissingError(
            "pycomm.reduce_op on a GPU needs numba-cuda: pip install 'pycomm[cuda13]', or [cuda12] "
            f"({error})"
        ) from None
    return numba, cuda
