"""Batch norm over all ranks is batch norm in one process that has all samples."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pycomm
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.sync_batch_norm import SyncBatchNorm, convert
from tests.training import one_thread as one_thread

CHANNELS = 3
KINDS = {
    "1d": (nn.BatchNorm1d, ()),
    "1d long": (nn.BatchNorm1d, (7,)),
    "2d": (nn.BatchNorm2d, (4, 5)),
    "3d": (nn.BatchNorm3d, (2, 3, 2)),
}
SHARES = {
    "even": lambda rank: 4,
    "uneven": lambda rank: 2 + 3 * rank,
    "one rank has none": lambda rank: 0 if rank == 1 else 3 + rank,
    "the first has two, others none": lambda rank: 2 * (rank == 0),
}
SETTINGS = {
    "default": {},
    "momentum 0.3": {"momentum": 0.3, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "not tracked": {"track_running_stats": False},
}


def layer(kind, dtype=torch.float64, **settings) -> nn.Module:
    torch.manual_seed(3)
    norm = KINDS[kind][0](CHANNELS, dtype=dtype, **settings)
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm


def samples(comm, kind, share, seed, dtype=torch.float64) -> tuple[list[torch.Tensor], list]:
    """Return the input of every rank, far from zero, and what the output's gradient is there."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(SHARES[share](rank), CHANNELS, *KINDS[kind][1]) for rank in range(comm.size)]

    def draw(shape) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [5 + rank + draw(shape) for rank, shape in enumerate(shapes)], [draw(s) for s in shapes]


def near(x: torch.Tensor, y: torch.Tensor, bound: float = 1e-12) -> bool:
    assert x.shape == y.shape and x.dtype == y.dtype
    x, y = x.detach(), y.detach()
    return x.numel() == 0 or bool((x - y).abs().max() <= bound * max(1.0, float(y.abs().max())))


def check(comm, kind, share, dtype=torch.float64, bound=1e-12, **settings) -> None:
    """Train three steps, here with a share and in one process with all; compare everything."""
    alone = layer(kind, dtype, **settings)
    norm = convert(layer(kind, dtype, **settings), comm)
    assert type(norm) is SyncBatchNorm
    for seed in range(3):
        inputs, slopes = samples(comm, kind, share, seed, dtype)
        every, mine = torch.cat(inputs).requires_grad_(), inputs[comm.rank].requires_grad_()
        y, expected = norm(mine), alone(every)
        y.backward(slopes[comm.rank])
        expected.backward(torch.cat(slopes))
        sizes = [len(x) for x in inputs]
        assert near(y, expected.split(sizes)[comm.rank], bound)
        assert near(mine.grad, every.grad.split(sizes)[comm.rank], bound)
        for p, q in zip(norm.parameters(), alone.parameters()):
            assert near(comm.all_reduce(p.grad.clone()), q.grad, 10 * bound)
            p.grad = q.grad = None
    for (name, b), (_, c) in zip(norm.named_buffers(), alone.named_buffers()):
        assert near(b, c, bound), name
        assert len({tuple(t.view(-1).tolist()) for t in comm.all_gather_object(b)}) == 1
    norm.eval()
    alone.eval()
    x = samples(comm, kind, share, 9, dtype)[0][0]
    if comm.rank == 0:  # nobody is needed
        assert near(norm(x), alone(x), bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_equals_one_process(comm, kind, share) -> None:
    check(comm, kind, share)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting(comm, settings) -> None:
    check(comm, "2d", "uneven", **settings)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_float32_and_memory_formats(comm, memory_format) -> None:
    check(comm, "2d", "uneven", torch.float32, 1e-5)
    norm = convert(layer("2d"), comm)
    x = samples(comm, "2d", "even", 0)[0][comm.rank]
    y = norm(x.contiguous(memory_format=memory_format))
    assert torch.equal(y, norm(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_keep_statistics_in_float32(comm, dtype) -> None:
    norm, alone = convert(layer("2d", torch.float32), comm), layer("2d", torch.float32)
    inputs = [x.to(dtype) for x in samples(comm, "2d", "uneven", 0, torch.float32)[0]]
    y = norm(inputs[comm.rank])
    expected = alone(torch.cat(inputs).float()).split([len(x) for x in inputs])[comm.rank]
    assert y.dtype == dtype and near(y.float(), expected, torch.finfo(dtype).eps)
    assert near(norm.running_var, alone.running_var, 1e-5)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared, nn.Flatten(),
        nn.Linear(64, 5), nn.BatchNorm1d(5),
    ).double()  # fmt: skip


def test_a_network_trains_as_in_one_process(comm) -> None:
    def sgd(named):
        return torch.optim.SGD([p for _, p in named], lr=0.05, momentum=0.9)

    loss_fn = nn.functional.cross_entropy
    alone, model = network(), convert(network(), comm)
    assert model[1] is model[4] and type(model[7]) is SyncBatchNorm
    trainer = pycomm.DataParallelTrainer(model, sgd, loss_fn, comm)
    optimizer = sgd(list(alone.named_parameters()))
    for count in (9, comm.size + 1, 2, 5):  # fewer than ranks: some have none
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)).double()
        t = torch.arange(count) % 5
        optimizer.zero_grad()
        expected = loss_fn(alone(x), t)
        expected.backward()
        optimizer.step()
        parts = torch.arange(count).tensor_split(comm.size)
        some = parts[comm.rank]
        loss = trainer.step(*((x[some], t[some]) if len(some) else (None, None)))
        assert abs(loss - expected.item()) < 1e-12 * abs(expected.item()) * 10
    for (name, a), b in zip(model.state_dict().items(), alone.state_dict().values()):
        assert near(a, b, 1e-11), name


def test_copies_share_the_ranks_and_pickles_have_none(comm) -> None:
    norm = convert(layer("1d"), comm)
    twin = copy.deepcopy(norm)
    x = samples(comm, "1d", "even", 0)[0][comm.rank]
    assert torch.equal(twin(x), norm(x))
    stored = pickle.loads(pickle.dumps(norm))
    assert torch.equal(stored.eval()(x), norm.eval()(x))
    with pytest.raises(ArgumentError, match="convert it again"):
        stored.train()(x)
    assert torch.equal(convert(stored, comm)(x), twin(x))


def test_hooks_and_parameters_stay(comm) -> None:
    norm, seen = layer("2d"), []
    weight = norm.weight
    norm.register_forward_hook(lambda *_: seen.append(1))
    model = nn.Sequential(norm)
    assert convert(model, comm)[0] is norm and norm.weight is weight
    model(torch.randn(2, CHANNELS, 2, 2).double())
    assert seen == [1]


def test_an_empty_batch_everywhere_changes_nothing(comm) -> None:
    norm = convert(layer("2d"), comm)
    before = copy.deepcopy(norm.state_dict())
    x = torch.zeros(0, CHANNELS, 4, 4, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.shape == x.shape
    assert all(torch.equal(a, b) for a, b in zip(norm.state_dict().values(), before.values()))


def test_errors(comm) -> None:
    norm = SyncBatchNorm(CHANNELS, comm)
    with pytest.raises(
        ArgumentError, match=rf"one value .* \(rank {comm.rank} has \({0**comm.rank}, 3\)"
    ):
        norm(torch.zeros(int(comm.rank == 0), CHANNELS))
    with pytest.raises(ArgumentError, match=r"of 3 channels got an input of shape \(2, 4\)"):
        norm(torch.zeros(2, 4))
    x = torch.randn(2, CHANNELS, requires_grad=True)
    (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()

    class Mine(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), Mine(2))
    with pytest.raises(
        UnsupportedError, match="'1' is a Mine, which may do more than a batch norm"
    ):
        convert(model, comm)
    assert type(model[0]) is nn.BatchNorm2d
