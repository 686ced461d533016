"""A replica whose weights are not those of the others is named, with parameter and step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import pycomm
from pycomm import _native
from pycomm.errors import ArgumentError
from pycomm.parallel.checksums import check_same_weights
from tests.training import conv, images, sgd
from tests.training import one_thread as one_thread

NAME = "3.weight"


def flip_one_bit(model: torch.nn.Module, name: str = NAME) -> None:
    """Change the last bit of a parameter's last element."""
    weights = model.get_parameter(name).detach().view(torch.int32)
    weights.view(-1)[-1] ^= 1


def who_differs(comm: pycomm.Communicator, changed: int) -> str:
    """Say what the error says when a rank was changed: with two, rank 0 counts as right."""
    if comm.size == 2:
        return f"rank 1: parameter {NAME} differs from that of rank 0 at step"
    ranks = ", ".join(str(r) for r in range(comm.size) if r != changed)
    return f"rank {changed}: parameter {NAME} differs from that of ranks {ranks} at step"


def train(trainer: pycomm.DataParallelTrainer, comm: pycomm.Communicator) -> None:
    trainer.step(*images(2, trainer.progress.step * comm.size + comm.rank))


@pytest.mark.parametrize("changed", [0, -1])
def test_a_trainer_names_rank_parameter_and_step(comm, changed) -> None:
    changed %= comm.size
    # Shards would heal it: who owns the parameter writes it to all.
    trainer = pycomm.DataParallelTrainer(
        conv(0), sgd, cross_entropy, comm, checksums=3, shard=False
    )
    for _ in range(4):
        train(trainer, comm)
    if comm.rank == changed:
        flip_one_bit(trainer.module)
    train(trainer, comm)
    if comm.size == 1:
        return train(trainer, comm)
    with pytest.raises(pycomm.DivergedError, match=f"{who_differs(comm, changed)} 6 "):
        train(trainer, comm)


def test_a_wrapper_does(comm) -> None:
    model = pycomm.DataParallel(conv(0), comm, checksums=2)
    for _ in range(3):
        model(images(2, comm.rank)[0]).sum().backward()
    if comm.rank == comm.size - 1:
        flip_one_bit(model.module)
    model(images(2, comm.rank)[0]).sum().backward()
    if comm.size == 1:
        return
    with pytest.raises(pycomm.MismatchError, match=f"{who_differs(comm, comm.size - 1)} 4 "):
        model(images(2, comm.rank)[0]).sum().backward()


def test_loops_of_ones_own_can_call_it(comm) -> None:
    model = conv(0)
    check_same_weights(model, comm, step=8)
    if comm.size == 1:
        return
    if comm.rank == comm.size - 1:
        flip_one_bit(model)
        flip_one_bit(model, "5.bias")
    with pytest.raises(pycomm.DivergedError, match=r"8 \(as do 2 of 6 parameters") as caught:
        check_same_weights(model, comm, step=8)
    assert str(caught.value).startswith(who_differs(comm, comm.size - 1))
    assert f"this is rank {comm.rank}" in str(caught.value)
    assert "what this rank did last is in" in str(caught.value)
    comm.barrier()  # the communicator can still be used


def test_the_environment_sets_it_and_off_is_the_default(comm, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        "pycomm.parallel.checksums.check_same_weights", lambda *call: calls.append(call[2])
    )
    for every, expected in [(0, []), (2, [2, 4])]:
        config = dataclasses.replace(comm.config, checksums=every)
        monkeypatch.setattr(comm._world, "config", config)
        trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
        for _ in range(5):
            train(trainer, comm)
        assert calls == expected


def test_a_negative_number_is_refused(comm) -> None:
    with pytest.raises(ArgumentError, match="checksums=-1 must be"):
        pycomm.DataParallel(conv(0), comm, checksums=-1)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 63, 64, 65, 1000])
def test_a_digest_sees_every_bit_and_the_length(nbytes) -> None:
    memory = np.zeros(nbytes + 1, np.uint8)
    digests = {_native.digest(memory.ctypes.data, n) for n in (nbytes, nbytes + 1)}
    for i in range(nbytes):
        memory[i] = 128
        digests.add(_native.digest(memory.ctypes.data, nbytes))
        memory[i] = 0
    assert len(digests) == nbytes + 2
