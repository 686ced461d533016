"""The CUDA kernels of csrc/cuda by name, and what launches them: a GPU, or in tests the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from pycomm.errors import UnsupportedError
from pycomm.kernels.block_scaled import QUANTISED, STORED
from pycomm.kernels.conversions import BYTES, packed_pairs
from pycomm.kernels.cuda_strides import strided_kernels, transpose_kernels
from pycomm.kernels.device import DeviceView
from pycomm.kernels.dropout import DROPPABLE
from pycomm.types import DTYPES, OPS, ReduceOp

BLOCK_THREADS = 256
"""The threads of every block; `kBlockThreads` in csrc/cuda/grid.h."""

SELECTABLE = tuple(DTYPES[name] for name in ("float16", "bfloat16", "float32", "float64"))
"""Of what the largest elements can be selected."""


@dataclass(frozen=True)
class Program:
    """A kernel that Numba compiled; its parameters all have 8 bytes.

    Attributes:
        name: of the operation and the dtype, for errors.
        ptx: the code.
        entry: the kernel's symbol in it.
    """

    name: str
    ptx: str
    entry: str


class Launcher(Protocol):
    """Where kernels run.

    Attributes:
        device: the number of the GPU, or `HOST`: where all arrays must be.
        multiprocessors: by which blocks are dealt out.
        capability: the compute capability, such as (9, 0).
    """

    device: int
    multiprocessors: int
    capability: tuple[int, int]

    def launch(self, kernel: str, grid: int, args: bytes) -> None:
        """Run `grid` blocks of a kernel, such as "reduce<11,0>", after what was launched before.

        Args:
            args: the kernel's one argument, a struct, as its bytes.
        """

    def launch_program(self, program: Program, grid: int, args: bytes) -> None:
        """Run `grid` blocks of a kernel of Numba's; `args` are its parameters, 8 bytes each."""

    def empty(self, nbytes: int) -> Any:
        """Return scratch memory: a uint8 array on the device."""

    def upload(self, data: bytes) -> DeviceView:
        """Return device memory that holds `data` when the call returns, for launches on any stream.

        The view owns the memory.
        """


@dataclass(frozen=True)
class Template:
    """A kernel template: its file in csrc/cuda, and the parameters it is instantiated with."""

    file: str
    parameters: Callable[[], Iterable[tuple[int, ...]]]


def _existing() -> Iterator[tuple[int, int]]:
    """Yield the codes of each dtype with each operation that exists on it."""
    for dtype in DTYPES.values():
        for name in OPS:
            try:
                yield dtype.code, ReduceOp(name).on(dtype).code
            except UnsupportedError:
                continue


def _float_pairs() -> Iterator[tuple[int, int]]:
    """Yield the codes of every pair of float dtypes."""
    return ((source, target) for (source,), (target,) in product(_floats(), _floats()))


def _quantised() -> Iterator[tuple[int, int]]:
    """Yield the codes of each dtype with each type that it can be stored as."""
    return product([dtype.code for dtype in QUANTISED], [stored.code for stored in STORED])


def _floats() -> Iterator[tuple[int]]:
    """Yield the code of each float dtype."""
    yield from ((dtype.code,) for dtype in DTYPES.values() if dtype.family == "float")


def _selectable() -> Iterator[tuple[int]]:
    """Yield the code of each dtype of which the largest elements can be selected."""
    yield from ((dtype.code,) for dtype in SELECTABLE)


TEMPLATES: dict[str, Template] = {
    "find_non_finite": Template("check.cu", _floats),
    "first_of": Template("check.cu", lambda: [()]),
    "copy_between": Template("collective.cu", lambda: [()]),
    "meet_only": Template("collective.cu", lambda: [()]),
    "reduce_between": Template("collective.cu", _existing),
    "convert": Template("convert.cu", _float_pairs),
    "keyed_dropout": Template("dropout.cu", lambda: [(d.code,) for d in DROPPABLE]),
    "pack": Template("pack.cu", packed_pairs),
    "pack_inline": Template("pack.cu", lambda: [(BYTES.code, BYTES.code)]),
    "dequantize_reduce": Template("quantize.cu", _quantised),
    "quantize": Template("quantize.cu", _quantised),
    "reduce": Template("reduce.cu", _existing),
    "select_begin": Template("select.cu", lambda: [()]),
    "select_count": Template("select.cu", _selectable),
    "select_digit": Template("select.cu", lambda: [()]),
    "select_gather": Template("select.cu", _selectable),
    "select_histogram": Template("select.cu", _selectable),
    "select_scan": Template("select.cu", lambda: [()]),
    "square_sums": Template("squares.cu", _floats),
    "total_of": Template("squares.cu", lambda: [()]),
    "strided_items": Template("strided.cu", strided_kernels),
    "strided_rows": Template("strided.cu", lambda: [(0,), (1,)]),
    "transpose": Template("transpose.cu", transpose_kernels),
}
"""Every kernel template by name; a new one is a line here."""


def file_of(kernel: str) -> str:
    """Return the file of a kernel such as "reduce<11,0>"."""
    return TEMPLATES[kernel.partition("<")[0]].file


def kernels_of(file: str) -> list[str]:
    """Return the names of all kernels in a file."""
    return [
        f"{name}<{','.join(map(str, parameters))}>"
        for name, template in TEMPLATES.items()
        if template.file == file
        for parameters in template.parameters()
    ]


def expression_of(kernel: str) -> str:
    """Return the C++ expression that names a kernel."""
    return f"pycomm::cuda::{kernel}"
