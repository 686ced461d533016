"""torch tensors of the device's double: they say that they are on cuda:0, and live in its memory.

What torch does with them is done on the current stream: the host waits until the stream has got
there, and does it. New tensors have memory that is overwritten once they are freed and their stream
has got there, as torch's caching allocator may.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pycomm.arrays import torch_dtype
from pycomm.devices.base import Memory
from pycomm.types import DType
from tests.devices.host_array import FREED, HostArray

DEVICE = torch.device("cuda", 0)
_MAY_MIX = (torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.index)


class HostTensor(torch.Tensor):
    """A tensor on the double."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def cpu(self) -> torch.Tensor:
        HostArray.runtime.finish()
        with _plainly():
            return self.as_subclass(torch.Tensor).detach().clone()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.device("cpu") in args:
            return self.cpu()
        return super().to(*args, **kwargs)

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Freed(np.ndarray):
    """Memory of one tensor, which is overwritten in stream order when nothing refers to it."""

    def __del__(self) -> None:
        if self.base is None and HostArray.runtime is not None:
            memory = self.view(np.ndarray)
            self.stream.put(lambda: _overwrite(memory))


def _overwrite(memory: np.ndarray) -> None:
    memory.fill(FREED)


class _OnDouble(TorchDispatchMode):
    """Lets torch make tensors on cuda:0, and bring others there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def laid_into(memory: Memory, shape: tuple[int, ...], dtype: DType) -> HostTensor:
    """Return a tensor on memory of the double, which it keeps alive."""
    of = torch_dtype(dtype)
    count = math.prod(shape)
    if count == 0:
        return tensor_on(torch.empty(shape, dtype=of))
    held = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(memory.address)
    held.memory = memory
    with _plainly():
        return tensor_on(torch.frombuffer(held, dtype=of, count=count).view(shape))


def tensor_on(memory: torch.Tensor) -> HostTensor:
    """Return a tensor on memory of the double."""
    return torch.Tensor._make_subclass(HostTensor, memory)


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, HostTensor) for x in given)
    if there:
        _check_together(func, given)
        stream = HostArray.runtime.current
        if not stream.idle:
            HostArray.runtime.finish()
    if (device := kwargs.get("device")) is not None:
        there = torch.device(device).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with _plainly():
        result = func(*args, **kwargs)
        if not there:
            return result
        known = {x.untyped_storage().data_ptr() for x in given}
        return tree_map(lambda x: _brought(x, known), result)


def _check_together(func: Any, given: list[torch.Tensor]) -> None:
    """Raise as torch does if the host's tensors are mixed with those of a GPU; scalars may be."""
    elsewhere = [x for x in given if not isinstance(x, HostTensor) and x.dim() > 0]
    if elsewhere and func._overloadpacket not in _MAY_MIX:
        raise RuntimeError(
            f"Expected all tensors of {func} to be on the same device, cuda:0 or cpu"
        )


def _brought(x: Any, known: set[int]) -> Any:
    """Return a result as a tensor of the double; if no argument has its memory, in a new one."""
    if not isinstance(x, torch.Tensor) or isinstance(x, HostTensor):
        return x
    storage = x.untyped_storage()
    if storage.nbytes() and storage.data_ptr() not in known:
        memory = _Freed(storage.nbytes(), np.uint8)
        memory.stream = HostArray.runtime.current
        flat = torch.frombuffer(memory, dtype=x.dtype)
        x = flat.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)
    return tensor_on(x)


def _plainly() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Python))


@contextlib.contextmanager
def torch_on_double() -> Iterator[None]:
    """Give torch a GPU while this lasts: cuda:0, the process's double."""
    generator = torch.Generator()
    fakes = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device=None: HostArray.runtime.finish(),
        "max_memory_allocated": lambda device: 1_000_000,
        "get_rng_state": lambda device: generator.get_state(),
        "set_rng_state": lambda state, device: generator.set_state(state),
    }
    before = {name: getattr(torch.cuda, name) for name in fakes}
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    try:
        with _OnDouble():
            yield
    finally:
        for name, true in before.items():
            setattr(torch.cuda, name, true)
        torch.__future__.set_overwrite_module_params_on_conversion(replaces)
