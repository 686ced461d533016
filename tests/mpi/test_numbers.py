"""fp16 with a loss scale: gradients that overflow on one rank or stage are left out on all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.errors import ArgumentError, NonFiniteError
from tests.training import CLASSES, adamw, named, samples, sgd, shared_folder
from tests.training import one_thread as one_thread


class Overflows(nn.Module):
    """Multiplies its gradient by infinity, on the ranks and in the steps that are told."""

    def __init__(self):
        super().__init__()
        self.now = False

    def forward(self, x):
        if self.now and x.requires_grad:
            x.register_hook(lambda gradient: gradient * float("inf"))
        return x


def layers(comm) -> nn.Sequential:
    torch.manual_seed(0)
    kept = [nn.Sequential(nn.Linear(6, 6), Overflows(), nn.Tanh()) for _ in range(comm.size)]
    return nn.Sequential(*kept, nn.Linear(6, CLASSES))


def make(comm, kind: str, optimizer=sgd, **options):
    if kind != "model":
        parts = layers(comm), optimizer, cross_entropy, comm
        return pycomm.DataParallelTrainer(*parts, shard=kind == "sharded", **options)
    costs = [1.0] * comm.size + [0.0]
    return pycomm.ModelParallelTrainer(
        layers(comm), optimizer, cross_entropy, comm, 2, balance=costs, **options
    )


def batch(comm, kind: str, seed: int):
    x, t = samples(4 * comm.size, seed)
    mine = slice(4 * comm.rank, 4 * comm.rank + 4) if kind != "model" else slice(None)
    return x[mine].float(), t[mine]


@pytest.mark.parametrize("kind", ["whole", "sharded", "model"])
def test_an_overflow_on_one_rank_is_left_out_on_all(comm, kind: str) -> None:
    trainer = make(comm, kind, precision="fp16")
    trainer.step(*batch(comm, kind, 0))
    before = named(comm, trainer.module)
    switches = [m for m in trainer.module.modules() if isinstance(m, Overflows)]
    for switch in switches:
        switch.now = comm.rank == comm.size - 1
    trainer.step(*batch(comm, kind, 1))
    assert trainer.progress.loss_scale == 2.0**15
    assert all(torch.equal(before[n], p) for n, p in named(comm, trainer.module).items())
    for switch in switches:
        switch.now = False
    trainer.step(*batch(comm, kind, 1))
    after = named(comm, trainer.module)
    assert trainer.progress.loss_scale == 2.0**15
    assert not any(torch.equal(before[n], after[n]) for n in before)
    assert all(p.isfinite().all() for p in after.values())


@pytest.mark.parametrize("kind", ["whole", "sharded", "model"])
def test_the_scale_changes_no_gradient(comm, kind: str) -> None:
    losses = {}
    for precision in ("fp32", "fp16"):
        trainer = make(comm, kind, precision=precision, clip_norm=0.1)
        losses[precision] = [trainer.step(*batch(comm, kind, seed)) for seed in range(4)]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=5e-3)
    assert losses["fp16"] != losses["fp32"]


def test_the_scale_grows_again_and_is_saved(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    trainer = make(comm, "whole", adamw, precision="fp16")
    trainer.progress.loss_scale, trainer.progress.since_overflow = 64.0, 1999
    trainer.step(*batch(comm, "whole", 0))
    assert (trainer.progress.loss_scale, trainer.progress.since_overflow) == (128.0, 0)
    trainer.save(folder)
    other = make(comm, "whole", adamw, precision="fp16")
    other.load(folder)
    assert other.progress == trainer.progress
    assert other.step(*batch(comm, "whole", 1)) == trainer.step(*batch(comm, "whole", 1))


@pytest.mark.parametrize("kind", ["whole", "sharded", "model"])
def test_gradients_that_are_not_finite_are_named_on_all_ranks(comm, kind: str) -> None:
    trainer = make(comm, kind, check_finite=True)
    trainer.step(*batch(comm, kind, 0))
    before = named(comm, trainer.module)
    last = comm.size - 1
    for switch in (m for m in trainer.module.modules() if isinstance(m, Overflows)):
        switch.now = comm.rank == last
    match = rf"rank {last}: parameter \d\.0\.(weight|bias) .*this is rank {comm.rank}"
    with pytest.raises(NonFiniteError, match=match):
        trainer.step(*batch(comm, kind, 1))
    assert all(torch.equal(before[n], p) for n, p in named(comm, trainer.module).items())


def test_what_a_loss_scale_excludes(comm) -> None:
    with pytest.raises(ArgumentError, match="compression='bf16' with precision='fp16'"):
        make(comm, "whole", compression="bf16", precision="fp16")
    with pytest.raises(ArgumentError, match="check_finite=True with precision='fp16'"):
        make(comm, "whole", check_finite=True, precision="fp16")


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_the_same_bits_for_every_bucket_size(comm, clip_norm: float | None) -> None:
    bits = set()
    for bucket_bytes in (1, 100, 25 << 20):
        trainer = make(comm, "whole", adamw, clip_norm=clip_norm, bucket_bytes=bucket_bytes)
        for seed in range(3):
            trainer.step(*batch(comm, "whole", seed))
        bits.add(b"".join(p.detach().numpy().tobytes() for p in trainer.module.parameters()))
    assert len(bits) == 1
