"""The table of what kernels.py measures: memory, bytes that must move, and competitors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.device import Device
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES, SUM

WINDOW = 1 << 20
"""So much at the beginning and at the end of a result is compared with the CPU's."""

PLANTED = 0x11
cpu = CpuKernels()


@dataclass(frozen=True)
class Kernel:
    """A kernel and its competitors on one set of buffers; the size is that of one input.

    Attributes:
        name: of the operation.
        dtype: of its inputs.
        redop: what is done, such as "sum", or the dtype that is cast to.
        layout: size → bytes of each buffer.
        prepare: fills the inputs.
        uses: implementation → one use of set i; "pycomm" is among them.
        expected: size → pairs of what pycomm wrote in set 0 and what the CPU writes, as bytes.
        most_sets: how many there are at most.
    """

    name: str
    dtype: str
    redop: str
    layout: Callable[[int], dict[str, int]]
    prepare: Callable[[Sets], None]
    uses: Callable[[Sets], dict[str, Use]]
    expected: Callable[[Sets], list[tuple[np.ndarray, np.ndarray]]]
    most_sets: int = 4096

    def moved_bytes(self, size_bytes: int) -> int:
        """Return what must be read and written at least: every buffer once."""
        return sum(self.layout(size_bytes).values())

    def wrong(self, sets: Sets, use: Use, plant: bool = False) -> int:
        """Use set 0 once, pycomm's way, and return how many bytes of it are wrong."""
        use(0)
        pairs = self.expected(sets)
        if plant:
            pairs[0][0][:1] ^= PLANTED
        return sum(int((got != expected).sum()) for got, expected in pairs)


def copy_use(device: Device, moved_bytes: int, sets: int) -> Use:
    """Return a device-to-device copy that reads and writes `moved_bytes` together."""
    half = max(1, moved_bytes // 2)
    room = device.xp.zeros((sets, 2, -(-half // 256) * 256), np.uint8)
    pairs = [(room[k, 0, :half], room[k, 1, :half]) for k in range(sets)]
    if not device.on_gpu:
        return lambda i: np.copyto(pairs[i][1], pairs[i][0])
    ends = [(b.data, a.data) for a, b in pairs]
    return lambda i: ends[i][0].copy_from_device_async(ends[i][1], half)


def windows(total: int) -> list[slice]:
    """Return which of `total` bytes, or elements, are compared: the beginning and the end."""
    if total <= 2 * WINDOW:
        return [slice(0, total)]
    last = total - WINDOW
    return [slice(0, WINDOW), slice(last - last % 4096, total)]


# ---- reduce


def reduction(dtype_name: str, inputs: int) -> Kernel:
    """Return the sum of so many inputs."""
    dtype, names = DTYPES[dtype_name], [f"x{k}" for k in range(inputs)]

    def layout(size: int) -> dict[str, int]:
        return dict.fromkeys([*names, "out"], size - size % dtype.itemsize)

    def prepare(sets: Sets) -> None:
        for k, name in enumerate(names):
            sets.fill(name, dtype_name, k)

    def uses(sets: Sets) -> dict[str, Use]:
        parts = [[device_view(a) for a in row] for row in zip(*map(sets.arrays, names))]
        outs = [device_view(a) for a in sets.arrays("out")]
        reduce = sets.device.kernels.reduce
        found: dict[str, Use] = {"pycomm": lambda i: reduce(parts[i], outs[i], dtype, SUM)}
        if sets.device.torch is not None:
            tensors = list(zip(*(sets.tensors(n, dtype_name) for n in names)))
            found["torch"] = _chain(sets.device.torch.add, tensors, sets.tensors("out", dtype_name))
        if dtype_name in ("float16", "float32", "float64"):
            arrays = list(zip(*(sets.views(n, dtype_name) for n in names)))
            found["cupy"] = _chain(sets.device.xp.add, arrays, sets.views("out", dtype_name))
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for part in windows(sets.arrays("out")[0].size):
            given = [sets.device.host(sets.arrays(n)[0][part]) for n in names]
            wanted = np.empty_like(given[0])
            cpu.reduce(given, wanted, dtype, SUM)
            pairs.append((sets.device.host(sets.arrays("out")[0][part]), wanted))
        return pairs

    return Kernel(f"reduce{inputs}", dtype_name, "sum", layout, prepare, uses, expected)


def _chain(add: Callable[..., Any], parts: list[Any], outs: list[Any]) -> Use:
    """Return a chain of additions, the first into the output, the others onto it."""

    def use(i: int) -> None:
        out = outs[i]
        add(parts[i][0], parts[i][1], out=out)
        for x in parts[i][2:]:
            add(out, x, out=out)

    return use


# ---- casts


def conversion(source: str, target: str) -> Kernel:
    """Return the cast of one dtype to another."""
    old, new = DTYPES[source], DTYPES[target]

    def layout(size: int) -> dict[str, int]:
        count = size // old.itemsize
        return {"x": count * old.itemsize, "out": count * new.itemsize}

    def uses(sets: Sets) -> dict[str, Use]:
        xs, outs = ([device_view(a) for a in sets.arrays(n)] for n in ("x", "out"))
        convert = sets.device.kernels.convert
        found: dict[str, Use] = {"pycomm": lambda i: convert(xs[i], outs[i], old, new)}
        if sets.device.torch is not None:
            froms, tos = sets.tensors("x", source), sets.tensors("out", target)
            found["torch"] = lambda i: tos[i].copy_(froms[i])
        if {source, target} <= {"float16", "float32", "float64"}:
            here, there, copyto = (
                sets.views("x", source),
                sets.views("out", target),
                sets.device.xp.copyto,
            )
            found["cupy"] = lambda i: copyto(there[i], here[i], casting="unsafe")
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x, out = sets.arrays("x")[0], sets.arrays("out")[0]
        pairs = []
        for part in windows(x.size // old.itemsize):
            given = sets.device.host(x[part.start * old.itemsize : part.stop * old.itemsize])
            got = out[part.start * new.itemsize : part.stop * new.itemsize]
            wanted = given.view(numpy_dtype(old)).astype(numpy_dtype(new))
            pairs.append((sets.device.host(got), wanted.view(np.uint8)))
        return pairs

    def prepare(sets: Sets) -> None:
        sets.fill("x", source, 0)

    return Kernel("convert", source, target, layout, prepare, uses, expected)


def arithmetic() -> list[Kernel]:
    """Return the rows of reductions and casts."""
    casts = [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
    for narrow in ("float8_e4m3fn", "float8_e5m2"):
        casts += [("float32", narrow), (narrow, "float32")]
    known = [reduction(d, n) for d in ("float32", "bfloat16") for n in (2, 4, 8)]
    return [*known, *(conversion(*pair) for pair in casts)]
