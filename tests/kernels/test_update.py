"""csrc/cpu/update against torch's optimizers, bit by bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pycomm import _native, arrays
from pycomm.kernels import update
from pycomm.kernels.update import ADAM, SGD, STATES
from tests.training import one_thread as one_thread
from tests.training import round_roots_correctly

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [*range(0, 70, 3), 31, 32, 64, 65, 4096, 10007]
STEPS = 3
LEVEL = _native.level()

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512", "DEFAULT"), reason="x86"
)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(kind), b.view(kind))


class OnePass:
    """An optimizer by csrc/cpu/update, of parameters that lie in several copies."""

    def __init__(self, rule: int, parameters: list[torch.Tensor], copies: int = 1, **group):
        self.rule, self.group, self.copies = rule, group, copies
        self.parameters = [[p.clone() for _ in range(copies)] for p in parameters]
        names = STATES[rule]
        self.state = [{name: torch.zeros_like(p) for name in names} for p in parameters]
        self.steps = 0

    def settings(self) -> tuple[float, ...]:
        if self.rule == SGD:
            return update.sgd_settings(**self.group, first=self.steps == 1)
        return update.adam_settings(**self.group, step=self.steps)

    def step(self, gradients: list[list[torch.Tensor]], scale: float = 1.0, past=False) -> None:
        """Gradients: for each parameter, those of the ranks."""
        self.steps += 1
        pieces = [
            update.Piece(
                [g.data_ptr() for g in ranks],
                [p.data_ptr() for p in copies],
                [s.data_ptr() for s in state.values()],
                0,
                (n := copies[0].numel()),
                update.tail(n, copies[0].itemsize, 0, n),
            )
            for ranks, copies, state in zip(gradients, self.parameters, self.state)
        ]
        table = update.table(pieces, len(gradients[0]), self.copies)
        code = arrays.resolve_dtype(gradients[0][0].dtype).code
        settings = np.array([self.settings()], np.float64)
        _native.update(self.rule, table, settings, code, len(gradients[0]), scale, (1 << 60) * past)


def random(dtype: torch.dtype, seed: int, sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]
    for t in tensors[::3]:
        t[::7] = 0  # such as an embedding's unused rows
        t[1::5] *= 1e-6
    return [t.to(dtype) for t in tensors]


@pytest.fixture
def exact_roots(monkeypatch):
    round_roots_correctly(monkeypatch)


def compare(rule: int, make, group: dict, dtype: torch.dtype) -> None:
    start = random(dtype, 0)
    reference = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = make(reference)
    mine = OnePass(rule, start, **group)
    for step in range(STEPS):
        gradients = random(dtype, step + 1)
        for p, g in zip(reference, gradients):
            p.grad = g.clone()
        optimizer.step()
        mine.step([[g] for g in gradients])
        for p, (q,), state in zip(reference, mine.parameters, mine.state):
            assert same_bits(p.detach(), q), (step, p.numel(), (p - q).nonzero())
            for name, value in state.items():
                theirs = optimizer.state[p].get(name)
                assert theirs is None or same_bits(theirs, value), (step, name, p.numel())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.0123])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.1, False), (0.9, 0.0, True)],
)
def test_sgd_is_that_of_torch(dtype, decay, momentum, dampening, nesterov) -> None:
    for maximize in (False, True):
        group = {
            "lr": 0.0371,
            "weight_decay": decay,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        compare(SGD, lambda ps, g=group: torch.optim.SGD(ps, foreach=False, **g), group, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.4, 0.95), (0.1, 0.99)])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_that_of_torch(dtype, betas, kind, exact_roots) -> None:
    for decay, maximize in itertools.product((0.0, 0.0123), (False, True)):
        group = {"lr": 0.0371, "betas": betas, "eps": 1e-7, "weight_decay": decay}
        group["maximize"] = maximize
        mine = {**group, "decoupled": kind is torch.optim.AdamW}
        compare(ADAM, lambda ps, g=group: kind(ps, foreach=False, **g), mine, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ranks", "scale"), [(2, 1.0), (2, 0.75), (3, 1 / 3), (1, 0.5)])
@pytest.mark.parametrize("past", [False, True])
def test_sums_in_rank_order_then_scales_and_writes_all_copies(dtype, ranks, scale, past) -> None:
    group = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0}
    group |= {"nesterov": False, "maximize": False}
    start = random(dtype, 0)
    whole, parts = OnePass(SGD, start, **group), OnePass(SGD, start, copies=ranks, **group)
    for step in range(2):
        gradients = list(zip(*(random(dtype, 10 * step + r) for r in range(ranks))))
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        sums = []
        for shares in gradients:
            total = shares[0].to(wide)
            for share in shares[1:]:
                total = total + share.to(wide)
            sums.append((total.to(dtype).to(wide) * torch.tensor(scale, dtype=wide)).to(dtype))
        whole.step([[s] for s in sums])
        parts.step(gradients, scale, past)
        for (p,), copies in zip(whole.parameters, parts.parameters):
            assert all(same_bits(p, copy) for copy in copies)


def reduced(gradients, scale=1.0):
    out = torch.empty_like(gradients[0])
    count = out.numel()
    squares = np.full(math.ceil(count / update.NORM_BLOCK) or 1, np.nan)
    piece = update.Piece(
        [g.data_ptr() for g in gradients],
        [out.data_ptr()],
        [out.data_ptr(), _native.address(squares)],
        0,
        count,
    )
    code = arrays.resolve_dtype(out.dtype).code
    table = update.table([piece], len(gradients), 1)
    (place,) = _native.reduce_gradients(table, code, len(gradients), scale)
    return out, squares, place


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_of_blocks(dtype) -> None:
    for count in (1, 15, 16, 4096, 4097, 12345):
        a, b = random(dtype, 1, [count])[0], random(dtype, 2, [count])[0]
        out, squares, place = reduced([a, b], 0.5)
        assert place == count
        assert torch.equal(out, (a + b) * 0.5)
        blocks = out.double().split(update.NORM_BLOCK)
        exact = [math.fsum(x * x for x in block.tolist()) for block in blocks]
        np.testing.assert_allclose(squares, exact, rtol=1e-14)


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_squares_are_the_same_bits_at_every_level(level) -> None:
    x = random(torch.float32, 1, [10007])[0]
    expected = reduced([x])[1]
    try:
        _native.use_level(level)
    except ValueError:
        pytest.skip(f"no {level} here")
    try:
        found = reduced([x])[1]
    finally:
        _native.use_level(LEVEL)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finds_the_first_that_is_not_finite(dtype, bad) -> None:
    for place in (0, 17, 4096, 9999):
        x = torch.ones(10000, dtype=dtype)
        x[place:] = bad
        assert reduced([torch.ones_like(x), x])[2] == place


def test_refuses_what_there_is_not() -> None:
    x = torch.ones(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="no updates of this dtype"):
        reduced([x])
    piece = update.Piece([x.data_ptr()], [x.data_ptr()], [], 0, 4)
    with pytest.raises(ValueError, match="too short"):
        _native.update(ADAM, update.table([piece], 1, 1), np.zeros((1, 3)), 11, 1, 1.0, 0)
