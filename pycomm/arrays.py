"""One view of NumPy and CuPy arrays, torch tensors and anything with DLPack."""

from __future__ import annotations

import importlib
import math
import sys
from functools import cache, cached_property
from typing import Any

import ml_dtypes
import numpy as np

from pycomm import _native
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.types import DTYPES, DType

_EXTENDED = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
HOST = -1
"""The device of memory that is on no GPU."""

_NUMPY = {name: _EXTENDED.get(name) or np.dtype(name) for name in DTYPES}


def place_name(device: int) -> str:
    """Return what a device is called in messages."""
    return "the host" if device == HOST else f"cuda:{device}"


def numpy_dtype(dtype: DType) -> np.dtype:
    """Return the NumPy dtype of `dtype`; bfloat16 and the float8 types come from ml_dtypes."""
    return _NUMPY[dtype.name]


def torch_dtype(dtype: DType) -> Any:
    """Return the torch dtype of `dtype`; torch must have been imported."""
    return getattr(sys.modules["torch"], dtype.name)


def resolve_dtype(dtype: Any) -> DType:
    """Return the DType meant by a name, a NumPy dtype or scalar type, or a torch dtype.

    Raises:
        UnsupportedError: it is none, or not a supported one.
    """
    name = str(dtype).removeprefix("torch.") if is_torch_dtype(dtype) else None
    if name is None:
        name = dtype if isinstance(dtype, str) and dtype in DTYPES else _numpy_name(dtype)
    if name not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _numpy_name(dtype: Any) -> str | None:
    try:
        return np.dtype(dtype).name
    except TypeError:
        return None


def is_torch_dtype(dtype: Any) -> bool:
    """Say whether `dtype` is a torch dtype, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dtype, torch.dtype)


def is_tensor(x: Any) -> bool:
    """Say whether `x` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


@cache
def _introduce_torch() -> None:
    """Tell the extension of torch's types, once there is a tensor."""
    torch = sys.modules["torch"]
    dtypes = [getattr(torch, name, None) for name in DTYPES]
    _native.know_tensors(torch.Tensor, dtypes)


class View:
    """Memory of `count` elements of `dtype`, contiguous, at `address`.

    `owner` is the array that the memory belongs to: the view keeps it alive. `packed` says that
    it is a contiguous copy of a strided array, to be copied back where it is a result. `device` is
    the number of the GPU that the memory is on, or HOST.
    """

    __slots__ = ("owner", "dtype", "count", "address", "packed", "device", "__dict__")

    def __init__(
        self,
        owner: Any,
        dtype: DType,
        count: int,
        address: int,
        packed: bool = False,
        device: int = HOST,
    ):
        self.owner = owner
        self.dtype = dtype
        self.count = count
        self.address = address
        self.packed = packed
        self.device = device

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize

    @cached_property
    def bytes(self) -> np.ndarray:
        """The memory as a flat uint8 array, for transports that want a buffer."""
        if is_tensor(self.owner):
            torch = sys.modules["torch"]
            return self.owner.detach().reshape(-1).view(torch.uint8).numpy()
        return self.owner.reshape(-1).view(np.uint8)


NOTHING: View = View(np.empty(0, np.uint8), DTYPES["uint8"], 0, 0)
"""The View of no memory, where an operation has no input or no output."""


def view(x: Any, *, result: bool = False) -> View:
    """Return a View of an array; a strided one is packed into a contiguous copy first.

    Args:
        x: a NumPy or CuPy array, a torch tensor, or an object of the host with `__dlpack__`.
        result: whether the operation writes to `x`.

    Raises:
        ArgumentError: `x` is read-only, or requires grad, and is a result.
        UnsupportedError: `x` is not an array, or of a dtype or on a device that is not supported.
    """
    if type(x) is np.ndarray or isinstance(x, np.ndarray):
        return _view_numpy(x, result)
    if is_tensor(x):
        return _view_tensor(x, result)
    if is_on_device(x):
        return _view_device(x)
    if hasattr(x, "__dlpack__"):
        return _view_numpy(np.from_dlpack(x), result)
    kind = type(x).__name__
    raise UnsupportedError(f"a {kind} is not an array: pass a NumPy array or a torch tensor")


def host_view(x: Any, *, result: bool = False) -> View:
    """Return a View as `view` does, where only memory of the host will do.

    Raises:
        UnsupportedError: `x` is on a GPU.
    """
    found = view(x, result=result)
    if found.device != HOST:
        raise UnsupportedError(
            f"an array on {place_name(found.device)} cannot be used here: copy it to the host, and "
            "pass that"
        )
    return found


def is_on_device(x: Any) -> bool:
    """Say whether `x` is a CuPy array, or a torch tensor, on a GPU."""
    if is_tensor(x):
        return bool(x.device.type == "cuda")
    return hasattr(type(x), "__cuda_array_interface__") and hasattr(x, "device")


def _view_numpy(x: np.ndarray, result: bool) -> View:
    dtype = DTYPES.get(x.dtype.name)
    if dtype is None or not x.dtype.isnative:
        names = ", ".join(DTYPES)
        raise UnsupportedError(f"dtype {x.dtype} is not one of {names} in native byte order")
    if result and not x.flags.writeable:
        raise ArgumentError(f"an array of shape {x.shape} is read-only but the result: copy it")
    packed = not x.flags.c_contiguous
    owner = np.ascontiguousarray(x) if packed else x
    return View(owner, dtype, owner.size, _native.address(owner), packed)


@cache
def _dtype_named(dtype: Any) -> DType | None:
    return DTYPES.get(str(dtype))


def _view_device(x: Any) -> View:
    dtype = _dtype_named(x.dtype)
    if dtype is None:
        raise UnsupportedError(f"dtype {x.dtype} is not one of {', '.join(DTYPES)}")
    packed = not x.flags.c_contiguous
    owner = x.copy() if packed else x
    return View(owner, dtype, owner.size, owner.data.ptr, packed, x.device.id)


def _view_tensor(x: Any, result: bool) -> View:
    _introduce_torch()
    if x.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"a tensor on {x.device} cannot be used here: move it with .cpu()")
    if result and x.requires_grad:
        raise ArgumentError(
            f"a tensor of shape {tuple(x.shape)} requires grad but is the result: pass x.detach()"
        )
    dtype = DTYPES.get(str(x.dtype)[6:])
    if dtype is None or x.layout is not sys.modules["torch"].strided:
        raise UnsupportedError(f"{x.layout} tensors of {x.dtype} are not supported")
    packed = not x.is_contiguous()
    owner = x.detach().contiguous() if packed else x
    device = x.device.index if x.device.type == "cuda" else HOST
    return View(owner, dtype, owner.numel(), owner.data_ptr(), packed, device)


def unpack(packed: View, x: Any) -> None:
    """Copy the contents of a packed view back into the strided array `x` it was made from."""
    if is_tensor(x):
        x.detach().copy_(packed.owner)
    elif is_on_device(x):
        x[...] = packed.owner
    else:
        np.copyto(x if isinstance(x, np.ndarray) else np.from_dlpack(x), packed.owner)


def array_of(result: View, out: Any) -> Any:
    """Return the array that a result is in, or will be: `out` if there is one."""
    if result is NOTHING:
        return None
    return result.owner if out is None else out


def returned(result: View, out: Any) -> Any:
    """Return the array of a result, after copying it into `out` if a packed copy was used."""
    if out is not None and result.packed:
        unpack(result, out)
    return array_of(result, out)


def empty(shape: tuple[int, ...], dtype: DType, as_tensor: bool, memory: Any = None) -> View:
    """Return the View of a new contiguous array: a torch tensor, or a NumPy array.

    Args:
        memory: an object with a writable buffer of the right size to lay the array into.
    """
    if memory is None:
        memory = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    return view(laid_into(memory, shape, dtype, as_tensor))


def empty_beside(source: View, shape: tuple[int, ...], as_tensor: bool) -> View:
    """Return the View of a new contiguous array of the dtype of `source`, where that is."""
    owner = source.owner
    if source.device == HOST:
        return empty(shape, source.dtype, as_tensor)
    return view(owner.new_empty(shape) if is_tensor(owner) else type(owner)(shape, owner.dtype))


def laid_into(memory: Any, shape: tuple[int, ...], dtype: DType, as_tensor: bool) -> Any:
    """Return a contiguous array on an object with a writable buffer of at least its size."""
    count = math.prod(shape)
    if as_tensor:
        torch, of = importlib.import_module("torch"), torch_dtype(dtype)
        if count:
            return torch.frombuffer(memory, dtype=of, count=count).view(shape)
        return torch.empty(shape, dtype=of)
    kind = numpy_dtype(dtype)
    return np.frombuffer(memory, kind, count).reshape(shape) if count else np.empty(shape, kind)
