"""Chooses an algorithm: the cheapest by latency and bandwidth among those of the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pycomm.algorithms.registry import Algorithm, algorithms, find
from pycomm.costs import Costs, Link
from pycomm.errors import ArgumentError
from pycomm.transport.base import Transport

ORDERS = ("hierarchical", "ring", "rank")
"""The orders of summation between hosts; the first that can be used is a communicator's."""

HOW_TO_MEASURE = "measure with: mpirun -np N python -m pycomm doctor --tune"


@dataclass(frozen=True)
class Wish:
    """Which algorithms PYCOMM_ALGORITHM asks for, or excludes."""

    text: str = ""

    def __post_init__(self) -> None:
        """Compare the names with those that exist.

        Raises:
            ArgumentError: a name is unknown.
        """
        known = dict.fromkeys(a.name for a in algorithms())
        for name in self.names:
            if name not in known:
                raise ArgumentError(
                    f"PYCOMM_ALGORITHM={self.text!r}: there is no algorithm {name!r}; there are "
                    f"{', '.join(known)}; a ^ at the beginning excludes all that follow"
                )

    @property
    def names(self) -> list[str]:
        """The algorithms that it names."""
        return [name.strip() for name in self.text.removeprefix("^").split(",") if self.text]

    @property
    def keeps_direct(self) -> bool:
        """Whether shared memory is used for every collective that can."""
        return ("direct" in self.names) != self.text.startswith("^") or not self.text

    def among(self, usable: Sequence[Algorithm]) -> list[Algorithm]:
        """Return those of `usable` that it leaves; all if it asks for none of them."""
        names = self.names
        named = [a for a in usable if a.name in names]
        if self.text.startswith("^"):
            return [a for a in usable if a not in named]
        return named or list(usable)


@dataclass(frozen=True)
class Choice:
    """An algorithm, and why it was chosen."""

    algorithm: Algorithm
    reason: str
    predicted_us: float


@dataclass(frozen=True)
class Tuning:
    """What decides between algorithms besides the call itself; equal on all ranks.

    Attributes:
        costs: what messages cost.
        wish: what PYCOMM_ALGORITHM says.
        order: PYCOMM_ORDER: "rank", or "" for the order of the hosts.
    """

    costs: Costs = field(default_factory=Costs)
    wish: Wish = Wish()
    order: str = ""

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            ArgumentError: it is not one that can be asked for.
        """
        if self.order not in ("", "rank"):
            raise ArgumentError(f"PYCOMM_ORDER={self.order!r} is not 'rank'")

    def link(self, algorithm: Algorithm, transport: Transport) -> Link:
        """Return what the algorithm's bytes travel on."""
        return self.costs.of(link_name(algorithm, transport), algorithm.kind, algorithm.name)

    def predict_us(self, algorithm: Algorithm, transport: Transport, nbytes: int) -> float:
        """Return latency·steps + bytes/bandwidth; the ranks of a host share its bandwidth."""
        return self.link(algorithm, transport).us(*load(algorithm, transport, nbytes))

    def choose(
        self,
        kind: str,
        transport: Transport,
        nbytes: int,
        name: str | None = None,
        order: str | None = None,
    ) -> Choice:
        """Choose the algorithm for one call; the same on every rank.

        Args:
            kind: the collective.
            transport: what it runs on.
            nbytes: the larger of input and output.
            name: an algorithm asked for, or None; goes before what the environment says.
            order: "rank" for sums in rank order; None is that on one host, "hierarchical" between
                hosts with as many ranks each, and over one, and the ring's otherwise.

        Raises:
            ArgumentError: the algorithm asked for does not exist, cannot run here, or adds in
                another order than the one asked for; or the environment excludes all.
        """
        if order not in (None, "rank"):
            raise ArgumentError(f"order={order!r} is not 'rank' or None")
        if name is not None:
            best, reason = _named(find(kind, name), transport, order), "asked for by name"
        else:
            same = self._of_one_order(kind, transport, order or self.order)
            best = min(same, key=lambda a: self._preference(a, transport, nbytes))
            reason = self._reason(best, same)
        return Choice(best, reason, self.predict_us(best, transport, nbytes))

    def explain(self, kind: str, transport: Transport, nbytes: int) -> str:
        """Say what `choose` chooses and why, what it is predicted to take, and the alternatives."""
        choice = self.choose(kind, transport, nbytes)
        chosen, us = choice.algorithm, choice.predicted_us
        ranks = f"{transport.size} rank{'s' * (transport.size > 1)}"
        lines = [f"{kind} of {nbytes} B on {ranks}: {chosen.name} ({choice.reason}); {us:.1f} us"]
        usable = [a for a in algorithms(kind) if a.supports(transport)]
        others = [a for a in algorithms(kind) if a not in usable]
        for a in usable:
            steps, sent_bytes = load(a, transport, nbytes)
            link = self.link(a, transport)
            lines.append(
                f"  {a.name:20}{link.us(steps, sent_bytes):10.1f} us = {steps:g} × "
                f"{link.latency_us:.3g} us + {sent_bytes:.0f} B / {link.bandwidth_gbps:.3g} GB/s"
                f"  {self._verdict(a, choice, usable)}".rstrip()
            )
        lines += [f"  {a.name:20}needs {a.needs}" for a in others]
        sources = dict.fromkeys(self.link(a, transport).source for a in usable)
        lines += [f"  costs: {source}" for source in sources]
        return "\n".join([*lines, f"  {HOW_TO_MEASURE}"] if "guessed" in sources else lines)

    def _of_one_order(self, kind: str, transport: Transport, order: str) -> list[Algorithm]:
        """Return what may be used, all of one order, which no size and no cost has a part in."""
        usable = [a for a in algorithms(kind) if a.supports(transport)]
        if not usable:
            kinds = ", ".join(dict.fromkeys(a.kind for a in algorithms()))
            raise ArgumentError(f"there is no collective {kind!r}: choose from {kinds}")
        shared = any(a.name == "direct" for a in usable)
        if order:
            usable = [a for a in usable if a.order == order]
        left = self.wish.among(usable)
        if not left:
            raise ArgumentError(
                f"PYCOMM_ALGORITHM={self.wish.text!r} leaves no algorithm for {kind} on "
                f"{transport.size} ranks{f' in {order} order' if order else ''}: leave one of "
                f"{', '.join(a.name for a in usable)}"
            )
        orders = ("rank", *ORDERS) if shared else ORDERS
        wanted = next(o for o in orders if any(a.order == o for a in left))
        return [a for a in left if a.order == wanted]

    def _preference(
        self, algorithm: Algorithm, transport: Transport, nbytes: int
    ) -> tuple[bool, float]:
        """Return what the best has least of: shared memory goes before all messages."""
        return algorithm.name != "direct", self.predict_us(algorithm, transport, nbytes)

    def _reason(self, best: Algorithm, same: Sequence[Algorithm]) -> str:
        if best.name in self.wish.names:
            why = f"asked for by PYCOMM_ALGORITHM={self.wish.text}"
        elif best.name == "direct":
            why = "all ranks share memory"
        else:
            why = f"cheapest of {', '.join(a.name for a in same)}"
        return f"{why}; adds in {best.order} order" if "reduce" in best.kind else why

    def _verdict(self, algorithm: Algorithm, choice: Choice, usable: Sequence[Algorithm]) -> str:
        if algorithm == choice.algorithm:
            return "chosen"
        if algorithm not in self.wish.among(usable):
            return f"left out by PYCOMM_ALGORITHM={self.wish.text}"
        if algorithm.order != choice.algorithm.order:
            return f"adds in {algorithm.order} order"
        return ""


def link_name(algorithm: Algorithm, transport: Transport) -> str:
    """Return the field of Costs for what the algorithm's bytes travel on."""
    if algorithm.name == "direct":
        return "memory"
    return "hosts" if transport.hosts > 1 else "messages"


def load(algorithm: Algorithm, transport: Transport, nbytes: int) -> tuple[float, float]:
    """Return steps, and the bytes of one rank or, where its ranks all send, of one host."""
    steps, sent_bytes = algorithm.cost(transport, nbytes)
    senders = transport.local.size if algorithm.by_host and transport.local else 1
    return steps, sent_bytes * senders


def _named(algorithm: Algorithm, transport: Transport, order: str | None) -> Algorithm:
    if not algorithm.supports(transport):
        raise ArgumentError(
            f"algorithm={algorithm.name!r} on {transport.size} ranks needs {algorithm.needs}"
        )
    if order is not None and algorithm.order != order:
        raise ArgumentError(
            f"algorithm={algorithm.name!r} adds in {algorithm.order} order, not in order={order!r}"
        )
    return algorithm
