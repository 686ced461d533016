"""Compressed reductions: same bits on all ranks, nothing lost, so many bytes, bad numbers told."""

from __future__ import annotations

import pytest
import torch

import pycomm
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.compression import METHODS, Compression, find
from pycomm.parallel.compression.exchange import Exchange
from tests.training import adamw, conv, images, sgd
from tests.training import one_thread as one_thread

OTHERS = (torch.float16, torch.bfloat16, torch.float64)
SHAPES = {
    "none": [],
    "empty": [(0,), (3, 0)],
    "scalar": [()],
    "odd": [(7,), (5, 3)],
    "layers": [(40, 30), (40,), (8, 4, 3, 3), (1, 64, 50), ()],
    "large": [(300, 200), (3001,)],
}
EVERY = pytest.mark.parametrize("name", METHODS)


def bucket(comm, shapes, dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a flat buffer with a gap between views, one of them with the strides of an image."""
    views, end = [], 0
    flat = comm.empty(sum(3 + torch.Size(s).numel() for s in shapes), dtype).zero_()
    for shape in shapes:
        like = torch.empty(shape, device="meta")
        strides = like.to(memory_format=torch.channels_last).stride() if like.dim() == 4 else None
        views.append(flat.as_strided(shape, strides or like.stride(), end))
        end += like.numel() + 3
    return flat, views


def gradients(views, rank: int, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in views]


def step(compressed: Compression, number: int) -> torch.Tensor:
    """Reduce this rank's gradients of a step; return the bucket."""
    mine = gradients(compressed.views, compressed.comm.rank, number)
    for view, gradient in zip(compressed.views, mine):
        view.copy_(gradient)
    compressed.reduce()
    return compressed.flat


def sent(comm, flat) -> torch.Tensor:
    """Return the sum of all ranks' `flat`, in float64."""
    return comm.all_reduce(flat.detach().to(torch.float64, copy=True))


def bits(x: torch.Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@EVERY
@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [(s, torch.float32) for s in SHAPES.values()] + [(SHAPES["layers"], d) for d in OTHERS],
    ids=[*SHAPES, *map(str, OTHERS)],
)
def test_same_bits_on_every_rank_and_run_and_nothing_is_lost(comm, name, shapes, dtype) -> None:
    flat, views = bucket(comm, shapes, dtype)
    total = torch.zeros(flat.shape, dtype=torch.float64)
    compressed = find(name)(comm, flat, views, "sum")
    results = []
    for number in range(3):
        mine = gradients(views, comm.rank, number)
        for view, gradient in zip(views, mine):
            view.copy_(gradient)
        total += sent(comm, flat)
        compressed.reduce()
        total -= flat
        results.append(bits(flat))
    assert len(set(comm.all_gather_object(tuple(results)))) == 1
    late, eps = sent(comm, compressed.state["residual"]), torch.finfo(dtype).eps
    if isinstance(compressed, Exchange):
        own = torch.zeros_like(late)
        compressed.chunks(own)[comm.rank].copy_(compressed.state["residual_of_sums"])
        late += sent(comm, own)
        eps = max(eps, torch.finfo(torch.float32).eps)
    error = (total - late).abs().amax().item() if flat.numel() else 0.0
    assert error <= 30 * comm.size * eps
    again = find(name)(comm, flat, views, "sum")
    assert [bits(step(again, number)) for number in range(3)] == results


def reference_of_exchange(comm, shapes, encode) -> torch.Tensor:
    """Return what one step of an exchange gives: `encode` rounds a chunk as the wire does."""
    flat, views = bucket(comm, shapes, torch.float32)
    inputs = []
    for rank in range(comm.size):
        for view, gradient in zip(views, gradients(views, rank, 0)):
            view.copy_(gradient)
        inputs.append(flat.clone())
    length = -(-flat.numel() // comm.size)
    length = -(-length // 16) * 16
    chunks = []
    for start in range(0, flat.numel(), length):
        total, *others = [encode(x[start : start + length]) for x in inputs]
        for other in others:
            total = total + other
        chunks.append(encode(total / comm.size))
    return torch.cat(chunks)


def by_block(largest: float, dtype: torch.dtype | None):
    """Return a function that quantises float32 by blocks of 256 elements and back."""

    def encode(x):
        blocks = x.split(256)
        scales = [block.abs().max() / largest for block in blocks]
        scaled = [block * (1 / s) if s else block for block, s in zip(blocks, scales)]
        stored = [b.round() if dtype is None else b.to(dtype).float() for b in scaled]
        return torch.cat([b * s for b, s in zip(stored, scales)])

    return encode


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("bf16", lambda x: x.bfloat16().float()),
        ("fp16", lambda x: x.half().float()),
        ("int8", by_block(127, None)),
        ("fp8", by_block(448, torch.float8_e4m3fn)),
        ("fp8:e5m2", by_block(57344, torch.float8_e5m2)),
    ],
)
@pytest.mark.parametrize("shapes", [SHAPES["odd"], SHAPES["layers"]], ids=["odd", "layers"])
def test_an_exchange_rounds_chunks_and_sums(comm, name, encode, shapes) -> None:
    flat, views = bucket(comm, shapes, torch.float32)
    result = step(find(name)(comm, flat, views, "avg"), 0)
    assert torch.equal(result, reference_of_exchange(comm, shapes, encode))


def test_topk_adds_the_largest_in_rank_order(comm) -> None:
    flat, views = bucket(comm, [(997,)], torch.float32)
    compressed = find("topk:0.1")(comm, flat, views, "sum")
    expected = torch.zeros(1000)
    for rank in range(comm.size):
        x = torch.cat([gradients(views, rank, 0)[0].float(), torch.zeros(3)])
        places = (-x.abs()).argsort(stable=True)[:100]
        expected[places] += x[places]
    assert torch.equal(step(compressed, 0), expected)


def test_topk_takes_the_first_of_equal_magnitudes(comm) -> None:
    flat = comm.empty(10, torch.float32).zero_()
    compressed = find("topk:0.3")(comm, flat, [flat], "avg")
    flat.copy_(torch.tensor([0.0, 1, -2, 2, -2, 1, 2, 2, 0, 0]))
    compressed.reduce()
    assert flat.tolist() == [0, 0, -2, 2, -2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (6, 4, 5, 5), (1, 20, 30)])
def test_powersgd_is_exact_where_the_rank_is_enough(comm, shape) -> None:
    flat, (view,) = bucket(comm, [shape], torch.float64)
    compressed = find("powersgd:2")(comm, flat, [view], "sum")
    rows = next(size for size in shape if size > 1)
    generator = torch.Generator().manual_seed(5)
    left, right = (
        torch.randn(n, 2, generator=generator, dtype=torch.float64)
        for n in (rows, view.numel() // rows)
    )
    expected = torch.zeros_like(flat)
    expected[: view.numel()] = (left @ right.T).view(-1) * sum(range(1, comm.size + 1))
    for _ in range(2):
        flat.copy_(expected * (comm.rank + 1) / sum(range(1, comm.size + 1)))
        compressed.reduce()
        assert (flat - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_powersgd_leaves_vectors_as_they_are(comm) -> None:
    flat, views = bucket(comm, [(5,), (40, 30), (2, 3), ()], torch.bfloat16)
    result = step(find("powersgd")(comm, flat, views, "avg"), 1)
    plain, same = bucket(comm, [(5,), (40, 30), (2, 3), ()], torch.bfloat16)
    for view, gradient in zip(same, gradients(same, comm.rank, 1)):
        view.copy_(gradient)
    comm.all_reduce(plain, "avg")
    for k in (0, 2, 3):
        assert torch.equal(views[k], same[k])
    assert not torch.equal(result, plain)


def test_powersgd_finds_its_way_back_from_zero(comm) -> None:
    flat, views = bucket(comm, [(20, 20)], torch.float32)
    compressed = find("powersgd:1")(comm, flat, views, "avg")
    compressed.reduce()
    assert not flat.any()
    for _ in range(3):
        flat.zero_()
        views[0][10:].copy_(torch.ones(10, 20))
        compressed.reduce()
    assert (views[0][10:] - 1).abs().max() < 1e-5 * 3


@EVERY
def test_bytes_on_the_wire(comm, name) -> None:
    flat, views = bucket(comm, [(300, 240), (3000,)], torch.float32)
    compressed = find(name)(comm, flat, views, "avg")
    before = comm.stats.bytes_sent
    step(compressed, 0)
    counted = comm.stats.bytes_sent - before
    if comm.config.shared_memory:  # elsewhere all_reduce of few bytes may send more of them, once
        assert counted == compressed.wire_bytes
    n, plain = comm.size, flat.nbytes
    part = {"bf16": 2, "fp16": 2, "int8": 3.9, "fp8": 3.9, "topk": 20, "powersgd": 8}[name]
    assert counted * part <= 2 * (n - 1) / n * plain * n ** (name == "topk") * 1.01


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_gradient_is_seen_by_all_and_forgotten(comm, name, bad) -> None:
    flat, views = bucket(comm, [(40, 30), (50,)], torch.float32)
    compressed = find(name)(comm, flat, views, "avg")
    step(compressed, 0)
    for view, gradient in zip(views, gradients(views, comm.rank, 1)):
        view.copy_(gradient)
    if comm.rank == comm.size - 1:
        views[0][-1, -1] = bad  # next to a gap
    compressed.reduce()
    assert not views[0][-1, -1].isfinite()
    for number in (2, 3):
        assert step(compressed, number).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in compressed.state.values())


def test_what_float16_cannot_hold_comes_later(comm) -> None:
    flat = comm.empty(100, torch.float32)
    compressed = find("fp16")(comm, flat, [flat], "avg")
    got = torch.zeros(100)
    for gradient in (100_000.0, 0.0, 0.0):
        flat.fill_(gradient)
        compressed.reduce()
        assert flat.isfinite().all()
        got += flat
    assert got.eq(100_000).all()


@EVERY
def test_wrapper_and_trainer_train_the_same_replicas(comm, name) -> None:
    model = pycomm.DataParallel(conv(comm.rank), comm, 200, compression=name)
    optimizer = sgd(list(model.named_parameters()))
    trainer = pycomm.DataParallelTrainer(
        conv(1), adamw, torch.nn.functional.cross_entropy, comm, compression=name
    )
    x, t = images(4, comm.rank)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), t).backward()
        optimizer.step()
        losses.append(trainer.step(x, t))
    weights = [bits(p.detach()) for m in (model, trainer.module) for p in m.parameters()]
    assert len(set(comm.all_gather_object(tuple(weights)))) == 1
    assert losses[-1] < 0.9 * losses[0]


def test_errors(comm) -> None:
    with pytest.raises(ArgumentError, match="compression='zip' does not exist: choose from 'bf16'"):
        pycomm.DataParallel(conv(), comm, compression="zip")
    for method in ("bf16:2", "topk:much", "topk:0", "powersgd:0", "powersgd:a", "fp8:e3m4"):
        with pytest.raises(ArgumentError, match=method.split(":")[0]):
            pycomm.DataParallel(conv(), comm, compression=method)
    with pytest.raises(ArgumentError, match="leave one of them out"):
        pycomm.DataParallel(conv(), comm, algorithm="ring", compression="bf16")
    with pytest.raises(UnsupportedError, match="'int8' does not take gradients of torch.complex64"):
        find("int8")(comm, torch.zeros(3, dtype=torch.complex64), [], "sum")
