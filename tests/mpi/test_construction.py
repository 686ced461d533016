"""Whatever one rank raises while a trainer is made is an error on all, which can go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.errors import ArgumentError, CommError
from pycomm.parallel.replicate import on_every_rank
from tests.training import dense, samples, sgd

Build = Callable[[pycomm.Communicator, bool], Any]


class OddError(Exception):
    """Something that cannot be pickled."""

    def __init__(self, number: int, reason: str):
        super().__init__(f"{number} {reason}")


def raise_if(fails: bool) -> None:
    if fails:
        raise OddError(3, "strange")


class Failing(nn.Module):
    """A layer whose forward raises on some rank."""

    def __init__(self, fails: bool):
        super().__init__()
        self.linear, self.fails = nn.Linear(6, 6).double(), fails

    def forward(self, x):
        raise_if(self.fails)
        return self.linear(x)


def layers(comm, fails: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(6, 6).double() for _ in range(comm.size)], Failing(fails))


def adamw(named, fails: bool):
    raise_if(fails)
    return torch.optim.AdamW(named)


def factory(comm, fails: bool, call: int) -> Callable[[], nn.Module]:
    """Return what builds a model; it raises in the given call."""
    calls = []

    def build() -> nn.Module:
        calls.append(1)
        raise_if(fails and len(calls) == call)
        return layers(comm)

    return build


def model_parallel(comm, given, fails: bool = False, **options: Any) -> Any:
    optimizer = partial(adamw, fails=fails)
    return pycomm.ModelParallelTrainer(given, optimizer, cross_entropy, comm, 2, **options)


def by_a_style(comm, fails: bool) -> Any:
    def style(layer, place):
        raise_if(fails)
        return layer

    if comm.size == 1:
        pytest.skip("nothing is divided")
    mesh = pycomm.Mesh(comm, tp=None, dp=2 if comm.size == 4 else 1)
    return model_parallel(mesh, layers(comm), tensor_plan={"0": style})


def by_data(comm, fails: bool, **options: Any) -> Any:
    optimizer = partial(adamw, fails=fails)
    return pycomm.DataParallelTrainer(layers(comm), optimizer, cross_entropy, comm, **options)


BUILDS: dict[str, tuple[Build, str]] = {
    "optimizer": (
        lambda c, f: model_parallel(c, layers(c), f),
        "making the optimizer: OddError: 3 s",
    ),
    "factory": (
        lambda c, f: model_parallel(c, factory(c, f, 1)),
        "reading the model: OddError: 3 str",
    ),
    "again": (
        lambda c, f: model_parallel(c, factory(c, f, 2)),
        "giving the model values: OddError: 3",
    ),
    "leaf": (lambda c, f: model_parallel(c, layers(c), leaves=[3] * f), "reading the arguments: "),
    "state": (
        lambda c, f: model_parallel(c, layers(c), f, memory_limit="1 GiB"),
        "the optimizer's state cannot be measured on tiny parameters: 3 strange",
    ),
    "style": (by_a_style, "dividing the model: OddError: 3 strange"),
    "data": (by_data, "making the optimizer: OddError: 3 strange"),
    "data, state": (partial(by_data, memory_limit="1 GiB"), "the optimizer's state cannot be "),
}


def assert_told(comm, raising: int, build: Callable[[], Any], match: str) -> None:
    """Check that all ranks raise what one does, which has the cause; then that they can go on."""
    with pytest.raises(CommError, match=rf"rank {raising}: .*{match}") as caught:
        build()
    assert (caught.value.__cause__ is not None) == (comm.rank == raising)
    trainer = pycomm.ModelParallelTrainer(dense(), sgd, cross_entropy, comm, 2)
    assert trainer.step(*samples(4, 1)) > 0


@pytest.mark.parametrize("what", BUILDS)
def test_an_error_of_one_rank_is_told_on_all(comm, what: str) -> None:
    build, match = BUILDS[what]
    for raising in sorted({0, comm.size - 1}):
        assert_told(comm, raising, lambda raising=raising: build(comm, comm.rank == raising), match)


def test_a_layer_that_cannot_be_measured(comm) -> None:
    if comm.size == 1:
        pytest.skip("nothing is cut")
    x = samples(2, 0)[0][:, :5]
    match = "measuring layers on sample=: RuntimeError: mat1 and mat2"
    assert_told(comm, 0, lambda: model_parallel(comm, layers(comm), sample=x), match)


def test_an_error_before_the_others_measure(comm) -> None:
    if comm.size == 1:
        pytest.skip("nothing is cut")
    x, last = samples(2, 0)[0], comm.size - 1
    model = layers(comm)
    if comm.rank == last:
        model[0] = nn.Linear(6, 6, device="meta")
        model[0].weight = nn.UninitializedParameter(device="cpu")  # the model cannot be read
    match = "parameter '0.weight' has no shape yet"
    assert_told(comm, last, lambda: model_parallel(comm, model, sample=x), match)


def test_an_agreement_inside_another(comm) -> None:
    last, parts = comm.size - 1, comm.split(comm.rank % 2)

    def inner(raises: bool) -> None:
        on_every_rank(comm, lambda: raise_if(raises), "inner")

    def outer(early: bool, late: bool, part: bool) -> list[int]:
        raise_if(early and comm.rank == last)
        inner(late and comm.rank == last)
        everyone = comm.all_gather_object(comm.rank)
        on_every_rank(parts, lambda: raise_if(part and comm.rank == last), "part")
        return everyone

    cases = ((True, False, False), (False, True, False), (False, False, True))
    for case, where in zip(cases, ("outer", "inner", "part")):
        with pytest.raises(CommError, match=rf"{where}: OddError: 3 strange \(that rank has"):
            on_every_rank(comm, partial(outer, *case), "outer")
        comm.barrier()
    assert on_every_rank(comm, partial(outer, False, False, False)) == list(range(comm.size))


def test_an_error_of_pycomm_keeps_its_class(comm) -> None:
    def fail() -> None:
        if comm.rank == 0:
            raise ArgumentError("wrong")

    with pytest.raises(ArgumentError, match="^rank 0: wrong$"):
        on_every_rank(comm, fail, "doing something")
    with pytest.raises(ArgumentError, match=r"^rank \d: share=True needs shards"):
        by_data(comm, False, share=True, shard=False)
