"""Sharded optimizer state and shared parameters: any elementwise optimizer, any model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import pycomm
from pycomm import _native
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.scattered_update import ScatteredUpdate
from pycomm.parallel.sharded_update import ShardedUpdate
from tests.training import (
    adamw,
    assert_same_bits,
    conv,
    images,
    round_roots_correctly,
    sgd,
    shared_folder,
    shares,
)
from tests.training import one_thread as one_thread

OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01},
    "Adagrad": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "Adadelta": {"lr": 1.0},
    "ASGD": {"lr": 0.1},
    "Rprop": {"lr": 0.01},
}


class Odd(nn.Module):
    """Parameters of every kind: cut, dense but not contiguous, scalar, empty, unused, frozen."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(7)
        self.large = nn.Linear(97, 131)
        self.image = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.none = nn.Parameter(torch.empty(0, 3))
        self.unused = nn.Linear(5, 7)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.to(dtype)
        self.single = nn.Parameter(torch.randn(131).to(torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picture = self.image(x[:, :27].reshape(-1, 3, 3, 3)).flatten(1).sum(1, keepdim=True)
        return (self.large(x) * self.scale + picture).tanh() * self.single + self.none.sum()


def data(seed: int, count: int = 4, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 97, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randn(count, 131, generator=generator, dtype=torch.float64).to(dtype)


def factory(kind: str):
    def make(named):
        return getattr(torch.optim, kind)([p for _, p in named], **OPTIMIZERS[kind])

    return make


def train(comm, trainer, steps: range, share=slice(None)) -> None:
    for step in steps:
        x, t = data(step, comm.size)
        trainer.step(x[comm.rank : comm.rank + 1][share], t[comm.rank : comm.rank + 1][share])


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_elementwise_optimizer(comm, kind, monkeypatch) -> None:
    round_roots_correctly(monkeypatch)
    models = [Odd(), Odd()]
    ways = [{"shard": True}, {"shard": False}]
    trainers = [
        pycomm.DataParallelTrainer(model, factory(kind), mse_loss, comm, clip_norm=0.1, **way)
        for model, way in zip(models, ways)
    ]
    for trainer in trainers:
        train(comm, trainer, range(4))
    assert_same_bits(*models)
    fused = trainers[0]._way.fused
    assert fused == (shares(comm) and kind in ("SGD", "Adam", "AdamW"))


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adagrad"])
def test_collectives_alone_give_the_same_bits(comm, kind, monkeypatch) -> None:
    round_roots_correctly(monkeypatch)
    monkeypatch.setattr("pycomm.parallel.sharded_update.rule_of", lambda _: None)
    models = [Odd(), Odd()]
    for model, way in zip(models, [{"shard": True}, {"shard": False}]):
        trainer = pycomm.DataParallelTrainer(model, factory(kind), mse_loss, comm, **way)
        assert isinstance(trainer._way, ShardedUpdate) == way["shard"]
        assert not way["shard"] or isinstance(trainer._way._way, ScatteredUpdate)
        train(comm, trainer, range(3))
    assert_same_bits(*models)


def test_state_is_divided(comm) -> None:
    model = Odd()
    trainer = pycomm.DataParallelTrainer(model, factory("Adam"), mse_loss, comm, shard=True)
    train(comm, trainer, range(1))
    used = [p for n, p in model.named_parameters() if p.requires_grad and "unused" not in n]
    state = trainer.optimizer.state
    elements = sum(s["exp_avg"].numel() for s in state.values())
    counts = comm.all_gather_object(elements)
    whole = sum(p.numel() for p in used)
    assert sum(counts) == whole
    assert max(counts) <= whole / comm.size + 2 * 4096


def test_groups_and_schedules_work(comm, monkeypatch) -> None:
    round_roots_correctly(monkeypatch)
    models = []
    for way in ({"shard": True}, {"shard": False}):
        schedules = []

        def optimizer(named, schedules=schedules):
            decayed = [p for n, p in named if p.dim() > 1]
            others = [p for n, p in named if p.dim() <= 1 and "large" not in n]
            made = torch.optim.AdamW(
                [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.02}], lr=0.01
            )
            schedules.append(torch.optim.lr_scheduler.ExponentialLR(made, 0.5))
            return made

        model = Odd()
        trainer = pycomm.DataParallelTrainer(model, optimizer, mse_loss, comm, **way)
        bias = model.large.bias.detach().clone()
        for step in range(3):
            train(comm, trainer, range(step, step + 1))
            schedules[0].step()
        assert torch.equal(model.large.bias, bias)  # in no group
        assert trainer.optimizer.param_groups[1]["lr"] == 0.02 / 8
        models.append(model)
    assert_same_bits(*models)


def test_shared_parameters_are_one_copy(comm) -> None:
    if not shares(comm):
        pytest.skip("no shared memory")
    sizes = []
    for share in (False, True):
        before = _native.symmetric_bytes()
        model = nn.Linear(1000, 500)
        trainer = pycomm.DataParallelTrainer(model, sgd, mse_loss, comm, shard=True, share=share)
        sizes.append(_native.symmetric_bytes() - before)
        x = torch.ones(1, 1000)
        trainer.step(x, torch.zeros(1, 500))
        weights = comm.all_gather_object(model.weight.detach()[0, :3])
        assert all(torch.equal(w, weights[0]) for w in weights)
        comm.barrier()
        if comm.rank == 0:
            with torch.no_grad():
                model.weight[0, 0] = 5
        comm.barrier()
        assert (model.weight[0, 0] == 5) == (share or comm.rank == 0)
        comm.barrier()
        del trainer, model
    parameters = 4 * 500 * 1001
    assert sizes[0] >= 2 * parameters
    assert (sizes[1] < 1.1 * parameters) == (comm.rank > 0)


def test_accumulated_gradients_stay_those_of_this_rank(comm) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    alone = copy.deepcopy(model)
    trainer = pycomm.DataParallelTrainer(model, sgd, mse_loss, comm, accumulate=2, shard=True)
    for step in range(2):
        x = torch.full((1, 3), comm.rank + step + 1.0)
        (mse_loss(alone(x), torch.ones(1, 2)) / (2 * comm.size)).backward()
        trainer.step(x, torch.ones(1, 2))
    torch.testing.assert_close(model.weight.grad, alone.weight.grad)


def test_moving_the_model_afterwards_is_refused(comm) -> None:
    model = nn.Linear(3, 2)
    trainer = pycomm.DataParallelTrainer(model, sgd, mse_loss, comm, shard=True)
    model.double()
    with pytest.raises(UnsupportedError, match="'weight' was given other data, torch.float64"):
        trainer.step(torch.ones(1, 3).double(), torch.ones(1, 2).double())


def test_what_cannot_be_shared(comm, caplog) -> None:
    def make(optimizer, **way):
        return pycomm.DataParallelTrainer(nn.Linear(3, 2), optimizer, mse_loss, comm, **way)

    with pytest.raises(ArgumentError, match="leave out shard=False"):
        make(sgd, shard=False, share=True)
    whole = lambda named: torch.optim.Adafactor([p for _, p in named])  # noqa: E731
    with pytest.raises(UnsupportedError, match="Adafactor may not: pass share=False"):
        make(whole, share=True)
    make(whole, shard=True).step(torch.ones(1, 3), torch.ones(1, 2))
    assert ("Adafactor is not sharded" in caplog.text) == (comm.rank == 0)
    if not shares(comm):
        with pytest.raises(UnsupportedError, match="share memory"):
            make(sgd, share=True)


def test_dropped_trainers_leave_the_model(comm) -> None:
    before = _native.symmetric_bytes()
    model = nn.Linear(300, 200)
    trainer = pycomm.DataParallelTrainer(model, sgd, mse_loss, comm, shard=True)
    del trainer
    model(torch.ones(1, 300)).sum().backward()
    assert model.weight.grad is not None
    del model
    assert _native.symmetric_bytes() == before


@pytest.mark.parametrize("way", [{"shard": True}, {"share": True}, {"shard": False}])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_checkpoints_fit_any_way(comm, tmp_path, way, optimizer, monkeypatch) -> None:
    if "share" in way and not shares(comm):
        pytest.skip("no shared memory")
    round_roots_correctly(monkeypatch)
    folder = shared_folder(comm, tmp_path)

    def trainer(**way):
        return pycomm.DataParallelTrainer(Odd(), optimizer, mse_loss, comm, **way)

    first = trainer(**way)
    train(comm, first, range(3))
    first.save(folder)
    train(comm, first, range(3, 5))
    for other in ({"shard": True}, {"shard": False}):
        second = trainer(**other)
        second.load(folder)
        train(comm, second, range(3, 5))
        assert_same_bits(first.module, second.module)
    comm.barrier()  # rank 0 keeps the shared copy for the others


def test_checkpoints_fit_any_number_of_ranks(comm, tmp_path, monkeypatch) -> None:
    round_roots_correctly(monkeypatch)
    folder = shared_folder(comm, tmp_path)
    half = comm.split(0 if comm.rank < (comm.size + 1) // 2 else 1)

    def trainer(group):
        return pycomm.DataParallelTrainer(conv(0), adamw, cross_entropy, group, shard=True)

    def step(trainer, seed):
        trainer.step(*images(2, seed))  # the same on every rank: the mean is, too

    many = trainer(comm)
    for seed in range(2):
        step(many, seed)
    many.save(folder)
    few = trainer(half)
    few.load(folder)
    few.save(folder / f"half-{half is not None and comm.rank >= (comm.size + 1) // 2}")
    again = trainer(comm)
    again.load(folder / "half-False")
    assert_same_bits(again.module, many.module)
    step(many, 5)
    step(again, 5)
    assert_same_bits(again.module, many.module)


def test_a_copy_that_diverged_is_healed(comm) -> None:
    model = nn.Linear(300, 200)
    trainer = pycomm.DataParallelTrainer(model, sgd, mse_loss, comm, shard=True)
    with torch.no_grad():
        model.weight += comm.rank
    trainer.step(torch.zeros(1, 300), torch.zeros(1, 200))
    if shares(comm):
        weights = comm.all_gather_object(model.weight.detach())
        assert all(torch.equal(w, weights[0]) for w in weights)


@pytest.mark.parametrize("shard", [True, False])
def test_the_report_says_what_state_a_rank_keeps(comm, shard: bool) -> None:
    model = nn.Linear(128, 1024 * comm.size)
    trainer = pycomm.DataParallelTrainer(model, adamw, nn.functional.mse_loss, comm, shard=shard)
    trainer.step(torch.ones(1, 128), torch.ones(1, 1024 * comm.size))
    whole = 2 * sum(p.nbytes for p in model.parameters())
    for row in trainer.report():
        assert row["state_bytes"] == pytest.approx(whole / (comm.size if shard else 1), rel=0.05)
