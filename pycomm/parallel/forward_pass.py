"""One forward pass of a microbatch: which module runs, and what its dropouts are keyed by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from pycomm.errors import ArgumentError
from pycomm.kernels.dropout import Draw
from pycomm.parallel.keyed_mask import Part, current_part, drop, place_of


@dataclass
class ForwardPass:
    """The numbers that masks are made from, and where in the model the pass is.

    Attributes:
        seed, step: of the training.
        first_sample: the number of the microbatch's first sample in the global batch.
        samples: how many it has; None: as many as dimension 0 of each tensor.
        batch_dim: name of a module → the dimension of the batch in what it drops from.
        names: the full names of the modules that run, the innermost last.
        calls: how often each has called a function that may drop.
        number: of the call that is under way, among those of the innermost module.
        dropped: whether any call has dropped.
    """

    seed: int
    step: int
    first_sample: int
    samples: int | None
    batch_dim: Callable[[str], int | None]
    names: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    number: int = 0
    dropped: bool = False

    def copy(self) -> ForwardPass:
        """Return the pass as it is now, to go on from here once more."""
        return replace(self, names=list(self.names), calls=self.calls.copy())

    @property
    def layer(self) -> str:
        """The full name of the innermost module that runs."""
        return self.names[-1] if self.names else ""

    def count_call(self) -> None:
        """Note that the innermost module calls a function that may drop."""
        layer = self.layer
        self.number = self.calls[layer]
        self.calls[layer] += 1

    def drop(self, x: torch.Tensor, p: float, scale: float) -> torch.Tensor:
        """Return x · scale, with zeros for what the call under way drops."""
        self.dropped = True
        draw = Draw(_key(self.seed, self.layer, self.number), self.step, p, scale)
        return self._by_samples(x, draw, current_part())

    def _by_samples(self, x: torch.Tensor, draw: Draw, part: Part | None) -> torch.Tensor:
        """Drop from a view of `x` whose dimension 0 is the samples; `part` is of `x` itself."""
        says = None if part is None else part.batch
        dim = self.batch_dim(self.layer) if says is None else says
        if part is not None and part.dim < 0:
            part = replace(part, dim=part.dim + x.dim())
        if dim is None:
            place = place_of((1, *x.shape), 0, part and replace(part, dim=part.dim + 1))
            return drop(x, place, draw)
        if dim != 0:
            x, part = x.movedim(dim, 0), part and _moved(part, dim)
        rows, samples = self._rows(x), x.shape[0]
        if rows != 1:
            shape = (samples // rows, rows, *x.shape[1:])
            place = place_of(shape, self.first_sample, part and replace(part, dim=part.dim + 1))
        else:
            place = place_of(x.shape, self.first_sample, part)
        out = drop(x, place, draw)
        return out.movedim(0, dim) if dim else out

    def _rows(self, x: torch.Tensor) -> int:
        """Return how many rows of dimension 0 belong to one sample.

        Raises:
            ArgumentError: they are no whole number.
        """
        rows, rest = divmod(x.shape[0], self.samples) if self.samples else (1, 0)
        if rest or not rows:
            raise ArgumentError(
                f"dropout in module {self.layer!r} on a tensor whose batch dimension has size "
                f"{x.shape[0]} (shape {tuple(x.shape)}), in a microbatch of {self.samples} "
                "samples: say by batch_dims={name: dimension} where the samples are, or None for "
                "one mask that all of them share"
            )
        return rows


def _moved(part: Part, batch: int) -> Part:
    """Return the part of a tensor whose dimension `batch` was moved to the front."""
    if part.dim == batch:
        return replace(part, dim=0)
    return replace(part, dim=part.dim + (part.dim < batch))


@lru_cache(maxsize=65536)
def _key(seed: int, layer: str, number: int) -> int:
    """Return the key of the call of this number of a layer."""
    text = f"{seed}/{number}/{layer}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
