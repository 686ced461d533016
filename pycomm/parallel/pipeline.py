"""The pipeline: each rank runs its row of a schedule, values forward, gradients back."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pycomm.errors import UNUSABLE, ArgumentError, StageError
from pycomm.parallel.idle import Times
from pycomm.parallel.parcels import Failure
from pycomm.parallel.parts import INPUT, Part
from pycomm.parallel.routes import routes_of
from pycomm.parallel.schedules.actions import Action, Backward, Forward, Weights
from pycomm.parallel.stage import Context, Loss, Stage
from pycomm.parallel.traffic import Traffic
from pycomm.parallel.values import Value, describe

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

T = TypeVar("T")


class Pipeline:
    """This rank's stages of a model: of n ranks, rank r has those that are r modulo n.

    A value goes straight from the stage that gives it to those that take it, on the same rank
    without a message; the gradients of all takers are added in the order of stages. A gradient
    travels for each float tensor that requires one where it was given.

    Attributes:
        stages: those of this rank, by number.
        first, last: whether this rank has the first and the last stage.
        times: where the time of the last `run` went.

    Args:
        parts: of the whole model, in order; of those on other ranks only names are looked at.
        comm: the ranks.
        context: makes that of a microbatch's forward pass and loss.
        recompute: keep only what stages take, and run forward again before backward.
        copy: whether what comes is copied out of the channel: necessary on a GPU.
        everyone: the ranks of all pipelines that run at once; None: of this one only.

    Raises:
        ArgumentError: the parts do not fit together, or their number is no multiple of the ranks.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        comm: Communicator,
        context: Context = contextlib.nullcontext,
        recompute: bool = False,
        copy: bool = False,
        everyone: Communicator | None = None,
    ):
        if not parts or len(parts) % comm.size:
            raise ArgumentError(
                f"{len(parts)} stages cannot be dealt to {comm.size} ranks: each must get equally "
                f"many"
            )
        self._comm, self._copy, self._count = comm, copy, len(parts)
        self._everyone = comm if everyone is None else everyone
        self._routes = routes_of(parts)
        takers = Counter(route.value for route in self._routes)
        shared = frozenset(value for value, count in takers.items() if count > 1)
        self.stages = {
            number: Stage(number, parts[number], shared, context, recompute)
            for number in range(comm.rank, len(parts), comm.size)
        }
        self.first, self.last = comm.rank == 0, comm.rank == comm.size - 1
        self.times = Times()

    def run(
        self,
        actions: Sequence[Action],
        inputs: Sequence[Any] = (),
        loss: Loss = lambda microbatch, output: None,
        before_last: Callable[[], None] = lambda: None,
    ) -> None:
        """Run this rank's row of a schedule; gradients are added to the parameters' `grad`.

        A row of forward actions only, under `torch.no_grad()`, evaluates. All that was sent has
        been delivered when this returns, on every rank. Every rank of `everyone` must call this.

        Args:
            actions: the row.
            inputs: on the first rank those of each microbatch.
            loss: on the last rank, called once for each microbatch.
            before_last: called before the last action that adds to gradients.

        Raises:
            StageError: a stage has failed, here or on another rank; raised on all.
        """
        actions = list(_in_one(actions))
        self._begin(actions, inputs, loss)
        for action in actions:
            if isinstance(action, Forward):
                self._traffic.expect(action.stage, action.microbatch)
        last = max((i for i, a in enumerate(actions) if not isinstance(a, Forward)), default=-1)
        for number, action in enumerate(actions):
            if number == last:
                before_last()
            self._do(action)
        self._traffic.settle()
        self._agree()

    def _begin(self, actions: Iterable[Action], inputs: Sequence[Any], loss: Loss) -> None:
        self.times = Times()
        self._traffic = Traffic(self._comm, self._routes, self.times, self._copy)
        self._inputs, self._loss = inputs, loss
        self._deferring = {(a.stage, a.microbatch) for a in actions if isinstance(a, Weights)}
        self._last_back = {a.stage: a.microbatch for a in actions if isinstance(a, Backward)}
        self._failure: Failure | None = None
        self._error: Exception | None = None
        for stage in self.stages.values():
            stage.reset()

    def _do(self, action: Action) -> None:
        stage, microbatch = self.stages[action.stage], action.microbatch
        if isinstance(action, Forward):
            self._forward(stage, action)
        elif isinstance(action, Backward):
            self._backward(stage, action)
        else:
            self._attempt(action, lambda: stage.weights(microbatch))

    def _forward(self, stage: Stage, action: Action) -> None:
        number, microbatch = action.stage, action.microbatch
        taken: dict[str, Any] = dict(self._traffic.take(number, microbatch))
        self._note(taken.values())
        if number == 0 and self._failure is None:
            taken[INPUT] = self._inputs[microbatch]
        loss = self._loss if number == self._count - 1 else None
        defer = (number, microbatch) in self._deferring
        given = self._attempt(action, lambda: stage.forward(microbatch, taken, loss, defer), taken)
        self._traffic.give(number, microbatch, given)

    def _backward(self, stage: Stage, action: Action) -> None:
        number, microbatch = action.stage, action.microbatch
        gradients = self._traffic.take_gradients(number, microbatch)
        self._note([gradients])
        above = None if isinstance(gradients, Failure) or number == self._count - 1 else gradients
        last = self._last_back[number] == microbatch
        passed = self._attempt(action, lambda: stage.backward(microbatch, above, last))
        self._traffic.give_gradients(number, microbatch, passed)

    def _note(self, items: Iterable[Any]) -> None:
        """Compute no more if a failure has come."""
        failures = (item for item in items if isinstance(item, Failure))
        self._failure = self._failure or next(failures, None)

    def _attempt(
        self, action: Action, compute: Callable[[], T], taken: dict[str, Any] | None = None
    ) -> T | Failure:
        """Return what `compute` returns, or why this rank computes no more."""
        if self._failure is None:
            try:
                with self.times.computing(action.stage):
                    return compute()
            except UNUSABLE:
                raise
            except Exception as error:
                self._error = error
                self._failure = Failure(self._explain(action, error, taken or {}))
        return self._failure

    def _explain(self, action: Action, error: Exception, taken: dict[str, Any]) -> str:
        """Return what went wrong where, and what the stage was called with."""
        doing = _DOING[type(action)]
        inputs = [
            f"{name!r}: {describe(value.content() if isinstance(value, Value) else value)}"
            for name, value in taken.items()
        ]
        return (
            f"stage {action.stage} (rank {self._comm.rank}) failed in the {doing} of microbatch "
            f"{action.microbatch}: {type(error).__name__}: {error}"
            f"{'; it took ' + ', '.join(inputs) if inputs else ''}"
        )

    def _agree(self) -> None:
        """Raise on all ranks if a stage has failed on any."""
        failed = np.array([self._failure is not None], np.int32)
        with self.times.ending():
            self._everyone.all_reduce(failed)
        error, self._error, self._inputs = self._error, None, ()
        if failed[0]:
            texts = self._everyone.all_gather_object(self._failure and self._failure.text)
            raise StageError("; ".join(dict.fromkeys(filter(None, texts)))) from error


def _in_one(actions: Sequence[Action]) -> Iterator[Action]:
    """Leave out weights that follow their backward pass on stage 0, where no rank waits for it.

    It then does both in one pass, which takes less time than two halves.
    """
    before: Action | None = None
    for action in actions:
        if not (isinstance(action, Weights) and before == Backward(0, action.microbatch)):
            yield action
        before = action


_DOING = {Forward: "forward pass", Backward: "backward pass", Weights: "weights' gradients"}
