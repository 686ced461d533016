"""precision="bf16": both trainers compute as one process does under torch.autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, MismatchError
from tests.mpi.test_data_parallel import cut, train_in_one_process
from tests.training import (
    adamw,
    assert_same_bits,
    conv,
    dense,
    images,
    named,
    round_roots_correctly,
    samples,
    sgd,
)
from tests.training import one_thread as one_thread


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


class Narrow(nn.Module):
    """A model and its loss under autocast, for the reference."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast():
            return self.model(x)


def narrow_loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with autocast():
        return cross_entropy(output, targets)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_data_parallel_has_the_bits_of_one_process(comm, optimizer) -> None:
    batches = [images(size, seed) for seed, size in enumerate([8, 7, comm.size + 1, 9])]
    trainer = pycomm.DataParallelTrainer(
        conv(comm.rank), optimizer, cross_entropy, comm, 2, 0.3, precision="bf16", shard=False
    )
    losses = [trainer.step(*cut(batch, comm.size)[comm.rank]) for batch in batches]
    reference = conv(0)
    expected = train_in_one_process(
        Narrow(reference),
        optimizer(list(reference.named_parameters())),
        [batches[:2], batches[2:]],
        comm.size,
        narrow_loss,
        clip_norm=0.3,
    )
    assert losses == expected
    assert_same_bits(trainer.module, reference)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainer.module.parameters())


def test_model_parallel_has_the_bits_of_one_process(comm, monkeypatch) -> None:
    round_roots_correctly(monkeypatch)
    trainer = pycomm.ModelParallelTrainer(
        dense(0).float(), adamw, cross_entropy, comm, 1, precision="bf16", balance=[1.0] * 7
    )
    seen: list[torch.dtype] = []
    trainer.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    reference = dense(0).float()
    single = adamw(list(reference.named_parameters()))
    for k in range(3):
        x, t = samples(6, k)
        loss = trainer.step(x.float(), t)
        single.zero_grad()
        whole = narrow_loss(Narrow(reference)(x.float()), t)
        whole.backward()
        single.step()
        assert loss == whole.item()
    weights = named(comm, trainer.module)
    for name, p in reference.named_parameters():
        assert torch.equal(weights[name], p), name
    if comm.size == 2:
        assert seen[0] == (torch.float32 if comm.rank == 0 else torch.bfloat16)


@pytest.mark.parametrize("kind", [pycomm.DataParallelTrainer, pycomm.ModelParallelTrainer])
def test_evaluation(comm, kind) -> None:
    x, t = samples(7, 1)
    trainer = kind(dense(0).float(), sgd, cross_entropy, comm, precision="bf16")
    found = trainer.evaluate(TensorDataset(x.float(), t), batch_size=100)
    with torch.no_grad():
        model = Narrow(dense(0).float())
        parts = np.array_split(np.arange(7), comm.size if kind is pycomm.DataParallelTrainer else 7)
        losses = [len(i) * narrow_loss(model(x[i].float()), t[i]).item() for i in parts if len(i)]
        plain = cross_entropy(dense(0).float()(x.float()), t).item()
    assert abs(found["loss"] - sum(losses) / 7) < 1e-6
    assert found["loss"] != plain


def test_wrong_and_different_precisions(comm) -> None:
    with pytest.raises(ArgumentError, match="precision='fp8' is none of fp32, bf16, fp16"):
        pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm, precision="fp8")
    if comm.size > 1:
        mine = "bf16" if comm.rank else "fp32"
        with pytest.raises(MismatchError, match=r"precision .* differ: rank 0 has \('fp32'"):
            pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, precision=mine)
