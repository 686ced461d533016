"""Models whose dropout is keyed: the same in every layout, in checkpoints, and by every name."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pycomm.errors import ArgumentError
from pycomm.parallel.dropout import KeyedDropout, in_layer
from pycomm.parallel.keyed_mask import part_of

BOTH = pytest.mark.parametrize("reentrant", [True, False])


def outputs(module, x, cuts, **options):
    """Return what `module` makes of microbatches that begin at `cuts`."""
    keyed = KeyedDropout(module, seed=4, **options)
    parts = []
    for begin, end in zip(cuts, [*cuts[1:], len(x)]):
        with keyed(step=2, first_sample=begin, samples=end - begin):
            parts.append(module(x[begin:end]))
    return torch.cat(parts)


class Residual(nn.Module):
    """Drops by a function and by a module, twice each, and calls itself on itself."""

    def __init__(self, inner=None, width=32):
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=torch.float64)
        self.drop, self.inner = nn.Dropout(0.3), inner

    def forward(self, x):
        x = F.dropout(self.drop(self.linear(x)), 0.2) + self.drop(x)
        x = F.dropout(x, 0.2)
        return x if self.inner is None else self.inner(self.inner(x))


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()


@pytest.mark.parametrize("cuts", [[0, 1], [0, 3, 4], [0, 2, 4, 6]])
def test_any_microbatches(cuts):
    """A matrix product may round differently for other sizes, but a mask is a mask."""
    model, x = Residual(Residual(Residual())), torch.randn(7, 32, dtype=torch.float64)
    whole, got = outputs(model, x, [0]), outputs(model, x, cuts)
    assert torch.equal(got == 0, whole == 0)
    torch.testing.assert_close(got, whole, rtol=1e-12, atol=1e-12)
    x = torch.randn(7, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(
        outputs(encoder(), x, cuts), outputs(encoder(), x, [0]), rtol=1e-12, atol=1e-12
    )


def transformed(batch_first, cuts):
    """Return what a transformer makes of microbatches, with the batch first."""
    torch.manual_seed(0)
    options = {"dropout": 0.2, "batch_first": batch_first, "dtype": torch.float64}
    model = nn.Transformer(16, 2, 1, 2, 32, **options)
    source, target = (torch.randn(6, n, 16, dtype=torch.float64) for n in (5, 3))
    keyed, parts = KeyedDropout(model, seed=0), []
    for begin, end in zip(cuts, [*cuts[1:], 6]):
        given = (x[begin:end] for x in (source, target))
        with keyed(1, begin, end - begin):
            y = model(*(x if batch_first else x.transpose(0, 1) for x in given))
        parts.append(y if batch_first else y.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_layers_that_have_the_batch_second():
    expected = transformed(True, [0])
    for batch_first, cuts in ((True, [0, 1, 4]), (False, [0]), (False, [0, 1, 4])):
        got = transformed(batch_first, cuts)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Drops(nn.Module):
    """Drops from tensors of different kinds."""

    def __init__(self, shared=False):
        super().__init__()
        self.width = nn.Parameter(torch.ones(3, 20))
        self.inner = nn.Dropout(0.5)
        self.shared = shared

    def forward(self, x):
        rows = self.inner(x.view(-1, x.shape[-1])).view_as(x)
        return (rows, F.dropout(self.width)) if self.shared else rows


def test_flattened_samples_and_masks_that_are_shared():
    x, model = torch.ones(4, 3, 20), Drops()
    whole = outputs(model, x, [0])
    assert torch.equal(outputs(model, x, [0, 1]), whole)
    assert torch.equal(outputs(nn.Sequential(OrderedDict(inner=nn.Dropout())), x, [0]), whole)
    model = Drops(shared=True)
    keyed = KeyedDropout(model, seed=4, batch_dims={"": None})
    masks = []
    for begin, count in ((0, 4), (0, 1), (1, 3)):
        with keyed(2, begin, count):
            masks.append(model(x[begin : begin + count])[1])
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_where_the_samples_are_has_to_be_said():
    model = Drops(shared=True)
    with (
        KeyedDropout(model, seed=0)(0, 0, 4),
        pytest.raises(ArgumentError, match=r"in module '' on .* size 3 \(shape \(3, 20\)\).* of 4"),
    ):
        model(torch.ones(4, 3, 20))


@pytest.mark.parametrize(
    "wrong", [{"step": -1}, {"step": 1 << 64}, {"step": 0, "first_sample": -1}]
)
def test_numbers_out_of_range(wrong):
    with (
        pytest.raises(ArgumentError, match="must be numbers ≥ 0, step below"),
        KeyedDropout(nn.Dropout(), seed=0)(**wrong),
    ):
        pass


def test_seeds_steps_layers_and_calls_differ():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    x, masks = torch.ones(8, 64), []
    for seed, step in ((0, 0), (1, 0), (0, 1)):
        with KeyedDropout(model, seed)(step):
            masks += [model[0](x), model[1](x), model[0](x)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 200 < (one != other).sum() < 312


def test_parts_of_a_model_by_its_names():
    """A part must have the names of the whole; a call that lies in another part its number."""
    torch.manual_seed(1)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout()) for _ in range(4)))
    x = torch.randn(6, 8)
    expected = outputs(model, x, [0])
    layers = list(model.named_children())
    for piece in (layers[:1], layers[1:]):
        x = outputs(nn.Sequential(OrderedDict(piece)), x, [0])
    assert torch.equal(x, expected)


class Twice(nn.Module):
    """Uses one dropout, and its function, twice."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x):
        return F.dropout(F.dropout(self.drop(self.drop(x)), 0.1), 0.1)


def test_dropouts_of_one_module_in_different_parts():
    model, x = nn.Sequential(OrderedDict(twice=Twice())), torch.ones(4, 500)
    expected = outputs(model, x, [0])

    class Rest(nn.Module):
        def forward(self, y):
            with in_layer("twice", number=1):
                return F.dropout(y, 0.1)

    class First(nn.Module):
        def forward(self, x):
            for number in (0, 1):
                with in_layer("twice.drop", number):
                    x = F.dropout(x)
            with in_layer("twice"):
                return F.dropout(x, 0.1)

    assert torch.equal(outputs(Rest(), outputs(First(), x, [0]), [0]), expected)
    with in_layer("anywhere"):
        pass


# ---- what is computed again


class Checkpointed(nn.Module):
    """Runs blocks, one of them twice, and a function that drops, in checkpoints."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.block, self.last = Residual(width=16), Residual(width=16)
        self.call = partial(checkpoint, use_reentrant=reentrant)
        if reentrant is None:
            self.call = lambda function, *args: function(*args)

    def forward(self, x):
        x = F.dropout(x, 0.1)
        x = self.call(self.block, self.call(self.block, x))
        x = self.call(lambda x: F.dropout(torch.tanh(F.dropout(x, 0.3)), 0.3), x)
        return self.call(self.last, F.dropout(x, 0.1))


def gradients(model, begins, inside):
    """Return all gradients of microbatches whose backwards come in reverse, after the forwards."""
    model.zero_grad()
    x = torch.linspace(-2, 2, 8 * 16, dtype=torch.float64).view(8, 16).requires_grad_()
    keyed, losses = KeyedDropout(model, seed=0), []
    for begin in begins:
        with keyed(7, begin, 8 // len(begins)):
            loss = model(x[begin : begin + 8 // len(begins)]).sin().sum()
            if inside:
                loss.backward()
        losses.append(loss)
    for loss in [] if inside else reversed(losses):
        loss.backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


@BOTH
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("begins", [[0], [0, 2, 4, 6]])
def test_checkpoints_drop_the_same_again(reentrant, inside, begins):
    torch.manual_seed(2)
    model, plain = (nn.Sequential(Checkpointed(r)) for r in (reentrant, None))
    plain.load_state_dict(model.state_dict())
    got, expected = (gradients(m, begins, inside) for m in (model, plain))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@BOTH
def test_a_pass_goes_on_after_checkpoints_in_it(reentrant):
    x, model = torch.ones(4, 50), nn.Sequential(Twice())
    keyed = KeyedDropout(model, seed=0)
    with keyed(1):
        model(x)
        expected = F.dropout(x)
    with keyed(1):
        y = checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
        y.exp().sum().backward()
        assert torch.equal(F.dropout(x), expected)


@BOTH
def test_parts_in_checkpoints(reentrant):
    """What `part_of` says around a checkpoint holds in it again."""

    def loss(call):
        w = torch.ones(4, 6, requires_grad=True)
        with keyed(1), part_of(1, 6, 12):
            y = call(lambda w: F.dropout(w).exp(), w).sum()
        y.backward()
        return w.grad

    keyed = KeyedDropout(nn.Identity(), seed=0)
    again = loss(partial(checkpoint, use_reentrant=reentrant))
    assert torch.equal(again, loss(lambda function, w: function(w)))


@BOTH
def test_checkpoints_outside_are_torchs(reentrant):
    KeyedDropout(nn.Identity(), seed=0)
    x = torch.ones(10, requires_grad=True)
    checkpoint(lambda x: F.dropout(x).square(), x, use_reentrant=reentrant).sum().backward()
    assert set(x.grad.tolist()) <= {0.0, 8.0}


# ---- beside others


def test_models_in_models_and_after_an_error():
    class Raises(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(Raises())

        def forward(self, x):
            try:
                self.inner(x)
            except ValueError:
                return F.dropout(x)

    model, x = nn.Sequential(Catches(), nn.Dropout()), torch.ones(4, 100)
    first = outputs(model[0], x, [0])
    with KeyedDropout(nn.Identity(), seed=4)(2):
        assert torch.equal(F.dropout(x), first), "the module that raised runs no more"
    first = outputs(model, x, [0])
    with pytest.raises(ValueError, match="no"), KeyedDropout(model, 1)(0):
        model[0].inner(x)
    assert torch.equal(outputs(model, x, [0]), first)
    assert not torch.equal(F.dropout(x), F.dropout(x)), "torch's own again"
    outer, inner = KeyedDropout(model, seed=1), KeyedDropout(model, seed=4)
    with outer(0):
        with inner(2, 0, 4):
            assert torch.equal(model(x), first)
        assert not torch.equal(model(x), first)


def test_threads_have_passes_of_their_own():
    model, x = nn.Sequential(nn.Dropout(), nn.Dropout()), torch.ones(16, 50)
    expected = [outputs(model, x[i:], [0]) for i in range(4)]
    got = [[] for _ in range(4)]

    def work(i):
        for _ in range(20):
            got[i].append(outputs(model, x[i:], [0]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(g) == 20 and all(torch.equal(y, e) for y in g) for g, e in zip(got, expected))


def test_the_model_is_not_changed():
    model = Residual()
    before = pickle.dumps(model)
    keyed = KeyedDropout(model, seed=0)
    with keyed(0):
        model(torch.ones(2, 32, dtype=torch.float64))
        copy.deepcopy(model)
    assert pickle.dumps(model) == before
