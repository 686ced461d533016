"""The kernels that Numba compiles for a GPU, as plain functions; its simulator runs them, too.

Imported only once Numba is wanted. One thread takes an element at a time, consecutive threads
consecutive ones, and reads all inputs before it writes: outputs may be inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda

Function = Callable[..., Any]


def reduce_kernel(wide: Any, load: Function, combine: Function, store: Function) -> Function:
    """Return the kernel outputs[0…][i] = inputs[0][i] combined with inputs[1][i], …, in order.

    Args:
        wide: Numba's type of the accumulator, into which every result of `combine` is rounded.
        load: a device function, from a stored element to the accumulator.
        combine: a device function of two accumulators.
        store: a device function, from the accumulator to a stored element.
    """

    def reduce(inputs: Any, outputs: Any, count: int) -> None:
        total = cuda.local.array(1, wide)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            total[0] = load(inputs[0][i])
            for k in range(1, len(inputs)):
                total[0] = combine(total[0], load(inputs[k][i]))
            for k in range(len(outputs)):
                outputs[k][i] = store(total[0])

    return reduce


def accumulate_kernel(wide: Any, truth: bool, load: Function, combine: Function) -> Function:
    """Return the kernel partial[i] = partial[i] combined with x[i].

    Args:
        wide: Numba's type of the accumulator.
        truth: that is bool, which lies in memory as uint8.
        load: as in `reduce_kernel`.
        combine: as in `reduce_kernel`.
    """

    def accumulate(partial: Any, x: Any, count: int) -> None:
        total = cuda.local.array(1, wide)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            total[0] = partial[i] != 0 if truth else partial[i]
            total[0] = combine(total[0], load(x[i]))
            partial[i] = total[0]

    return accumulate
