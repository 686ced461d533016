"""Copies of what ranks own: some ranks, as survivors, put together what all of them had."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

import pycomm
from pycomm.errors import RankFailedError, UnsupportedError
from pycomm.parallel.copies import Copies
from tests.mpi.test_sharded_update import Odd, data, factory
from tests.training import one_thread as one_thread
from tests.training import shares


@pytest.fixture(params=["mapped", "sent"])
def way(request, comm, monkeypatch) -> str:
    if comm.size == 1:
        pytest.skip("one rank has no neighbour")
    if request.param == "mapped" and not shares(comm):
        pytest.skip("no shared memory")
    if request.param == "sent":
        monkeypatch.setattr(pycomm.Communicator, "shares_memory", False)
    return request.param


def sharded(comm, kind: str) -> pycomm.DataParallelTrainer:
    trainer = pycomm.DataParallelTrainer(Odd(), factory(kind), mse_loss, comm, shard=True)
    trainer.step(*data(comm.rank))
    return trainer


def everything(comm, trainer) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """Return the trained parameters and the whole state of the optimizer."""
    named = trainer.module.named_parameters()
    parameters = {name: p.detach().clone() for name, p in named if p.requires_grad}
    return parameters, comm.broadcast_object(trainer._way.state(), 0)["state"]


def assert_equal(whole, parameters, state) -> None:
    assert whole.parameters.keys() == parameters.keys()
    for name, p in parameters.items():
        assert torch.equal(whole.parameters[name], p), name
        assert whole.parameters[name].stride() == p.stride()
    assert whole.state.keys() == state.keys()
    for name, entry in state.items():
        assert whole.state[name].keys() == entry.keys()
        for key, value in entry.items():
            found = whole.state[name][key]
            assert torch.equal(found, value) if torch.is_tensor(value) else found == value


def without(comm, *ranks: int):
    return comm.split(None if comm.rank in ranks else 0)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop", "NAdam", "ASGD"])
def test_survivors_have_everything(comm, way, kind) -> None:
    trainer = sharded(comm, kind)
    copies = Copies(trainer._way._state, comm)
    trainer.step(*data(10 + comm.rank))
    expected = everything(comm, trainer)
    copies.take()
    trainer.step(*data(20 + comm.rank))  # the step under way
    for dead in (comm.size - 1, 0):
        survivors = without(comm, dead)
        if survivors is not None:
            assert_equal(copies.recover(survivors, (), None)[0], *expected)
            survivors.close()
    comm.barrier()


def test_what_one_has_seen_to_be_complete_counts(comm, way) -> None:
    """Those whom death reaches at the barrier have the generation, too."""
    trainer = sharded(comm, "Adam")
    copies = Copies(trainer._way._state, comm)
    trainer.step(*data(10 + comm.rank))
    expected = everything(comm, trainer)
    copies.take()
    if comm.rank != 1:
        copies._newest -= 1
    survivors = without(comm, 0)
    if survivors is not None:
        assert_equal(copies.recover(survivors, (), None)[0], *expected)
        survivors.close()
    comm.barrier()


def test_half_a_generation_does_not_count(comm, way, monkeypatch) -> None:
    trainer = sharded(comm, "Adam")
    copies = Copies(trainer._way._state, comm)
    expected = everything(comm, trainer)
    trainer.step(*data(10 + comm.rank))

    def die(_) -> None:
        raise RankFailedError

    monkeypatch.setattr(copies._generations[1], "write", die)
    with pytest.raises(RankFailedError):
        copies.take()
    survivors = without(comm, 0)
    if survivors is not None:
        assert_equal(copies.recover(survivors, (), None)[0], *expected)
        survivors.close()
    comm.barrier()


def test_there_are_none_where_the_job_ends_with_a_rank(comm) -> None:
    with pytest.raises(UnsupportedError, match=r"no copies of what other ranks own.*--with-ft"):
        sharded(comm, "SGD")._way.recover(comm, (), None)
