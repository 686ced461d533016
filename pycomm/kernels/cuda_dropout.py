"""Keyed dropout on a GPU, with the same masks as kernels/dropout.py."""

from __future__ import annotations

import struct
from typing import Any

from pycomm.errors import UnsupportedError
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.device import Named, check_apart, check_count, check_device, device_view
from pycomm.kernels.dropout import DROPPABLE, Draw, Place
from pycomm.kernels.launcher import BLOCK_THREADS
from pycomm.types import DType

_ARGS = struct.Struct("<4Qd2Q3q2I")


class CudaDropout(OnDevice):
    """Dropout by number, see csrc/philox.h."""

    def dropout(self, source: Any, target: Any, dtype: DType, place: Place, draw: Draw) -> None:
        """Write the kept elements of `source`, scaled and rounded once, and zeros for the others.

        Args:
            source: `place.count` elements.
            target: as many; may be `source`.
            dtype: one of DROPPABLE.

        Raises:
            ArgumentError: an array has a wrong size or alignment, is on another device, they
                overlap without being the same, or an element is beyond what has a number.
            UnsupportedError: the dtype has no kernel.
        """
        if dtype not in DROPPABLE:
            names = ", ".join(d.name for d in DROPPABLE)
            raise UnsupportedError(f"dropout: {dtype.name} is not one of {names}")
        place.check()
        x, y = Named("source", device_view(source)), Named("target", device_view(target))
        check_device([x, y], self._launcher.device)
        check_count([x, y], dtype, place.count)
        check_apart([y], [x])
        if place.count:
            threads = place.samples * place.runs * -(-place.length // 4)
            grid = grid_of(self._launcher, -(-threads // BLOCK_THREADS))
            self._launcher.launch(
                f"keyed_dropout<{dtype.code}>",
                grid,
                _ARGS.pack(
                    x.view.address,
                    y.view.address,
                    draw.key,
                    draw.step,
                    draw.scale,
                    place.first,
                    place.stride,
                    place.samples,
                    place.runs,
                    place.length,
                    place.first_sample,
                    draw.threshold,
                ),
            )
