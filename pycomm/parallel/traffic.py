"""What goes between the stages in a step: values forward, their gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pycomm.parallel.idle import Times
from pycomm.parallel.parcels import Expected, Failure, Item, Parcels
from pycomm.parallel.routes import Route
from pycomm.parallel.values import Value

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Gradients = list[torch.Tensor | None]
"""Of the tensors of a value that learn; None is zero."""

Key = tuple[int, int]
"""A route's number and a microbatch."""


class Traffic:
    """Brings what stages give to those that take it: by messages, or at once on the same rank.

    A step has the same messages whatever happens: a stage that has failed sends a Failure for each
    of its values and gradients, so that everyone gets to know, and nobody waits for ever.

    Args:
        comm: the ranks; stage s is on rank s modulo their number.
        routes: all of them.
        times: where the time of messages is counted.
        copy: whether what comes is copied out of the channel.
    """

    def __init__(self, comm: Communicator, routes: Sequence[Route], times: Times, copy: bool):
        self._comm, self._routes = comm, routes
        self._parcels = Parcels(comm, times, copy)
        self._values: dict[Key, Expected | Item] = {}
        self._gradients: dict[Key, Expected | Item] = {}
        self._owed: set[Key] = set()
        self._learning: dict[tuple[int, int], dict[str, int]] = {}  # (stage, microbatch) → counts

    def expect(self, stage: int, microbatch: int) -> None:
        """Start to receive what a stage takes."""
        for route in self._routes:
            if route.taker == stage and not self._is_here(route.giver):
                key = route.number, microbatch
                learns = torch.is_grad_enabled()
                self._values[key] = self._receive(route.giver, key, back=False, learns=learns)

    def take(self, stage: int, microbatch: int) -> dict[str, Item]:
        """Return what a stage takes, by name, once all of it is here."""
        return {r.value: self._take(r, microbatch) for r in self._routes if r.taker == stage}

    def give(self, stage: int, microbatch: int, items: dict[str, Value] | Failure) -> None:
        """Send what a stage gives, or why it gives nothing, to those that take it."""
        if isinstance(items, dict):
            counts = {name: len(value.learning()) for name, value in items.items()}
            self._learning[stage, microbatch] = counts
        for route in self._routes:
            if route.giver == stage:
                item = items if isinstance(items, Failure) else items[route.value]
                self._give(route, microbatch, item)

    def take_gradients(self, stage: int, microbatch: int) -> Gradients | Failure:
        """Return the gradients of what a stage gave, summed over those that took it, in order."""
        counts = self._learning.pop((stage, microbatch), {})
        sums: dict[str, Gradients] = {name: [None] * n for name, n in counts.items()}
        failure = None
        for route in self._routes:
            if route.giver == stage and sums.get(route.value):
                item = _here(self._gradients.pop((route.number, microbatch)))
                if isinstance(item, Failure):
                    failure = item
                else:
                    sums[route.value] = list(map(_sum, sums[route.value], _gradients(item)))
        return failure or [gradient for parts in sums.values() for gradient in parts]

    def give_gradients(
        self, stage: int, microbatch: int, gradients: dict[str, Gradients] | Failure
    ) -> None:
        """Send the gradients of what a stage took, or why there are none, to those that gave it."""
        for route in self._routes:
            key = route.number, microbatch
            if route.taker != stage or key not in self._owed:
                continue
            self._owed.remove(key)
            item: Item
            item = gradients if isinstance(gradients, Failure) else _item(gradients[route.value])
            if self._is_here(route.giver):
                self._gradients[key] = item
            else:
                self._send(item, route.giver, key, back=True, learns=False)

    def settle(self) -> None:
        """Return when all that was sent may change."""
        self._parcels.settle()

    def _take(self, route: Route, microbatch: int) -> Item:
        key = route.number, microbatch
        item = _here(self._values.pop(key))
        if isinstance(item, Value) and any(item.learns):
            self._owed.add(key)
        return item

    def _give(self, route: Route, microbatch: int, item: Item) -> None:
        key = route.number, microbatch
        if self._is_here(route.taker):
            here = item if isinstance(item, Failure) else item.with_tensors(torch.Tensor.detach)
            self._values[key] = here
            return
        self._send(item, route.taker, key, back=False, learns=torch.is_grad_enabled())
        if isinstance(item, Value) and any(item.learns):
            self._gradients[key] = self._receive(route.taker, key, back=True, learns=False)

    def _send(self, item: Item, stage: int, key: Key, back: bool, learns: bool) -> None:
        self._parcels.send(item, stage % self._comm.size, self._tag(key, back), learns)

    def _receive(self, stage: int, key: Key, back: bool, learns: bool) -> Expected:
        return self._parcels.expect(stage % self._comm.size, self._tag(key, back), learns)

    def _is_here(self, stage: int) -> bool:
        return stage % self._comm.size == self._comm.rank

    def _tag(self, key: Key, back: bool) -> int:
        route, microbatch = key
        return 2 * (microbatch * len(self._routes) + route) + back


def _here(item: Expected | Item) -> Item:
    return item.wait() if isinstance(item, Expected) else item


def _item(gradients: Gradients) -> Value:
    """Return gradients as what travels: a tensor alone as it is."""
    return Value.of(gradients[0] if len(gradients) == 1 else gradients)


def _gradients(item: Value) -> Gradients:
    content = item.content()
    return content if isinstance(content, list) else [content]


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if one is None else one if other is None else one + other
