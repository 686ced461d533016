"""The models: Sequentials with enough layers, the right shapes, and the right dependencies."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pycomm.errors import ArgumentError
from pycomm.workloads import models
from pycomm.workloads.task import Defaults, Task


def make_task(kind, shape, classes=5):
    """Return a task without data."""
    empty = TensorDataset(torch.empty(0))
    return Task("toy", kind, empty, empty, shape, classes, Defaults("mlp", 1, None, 8, 1e-3))


IMAGES, VECTORS = make_task("values", (1, 8, 8)), make_task("values", (7,))
TEXT = make_task("tokens", (16,), classes=11)
CASES = [("mlp", IMAGES, 4), ("mlp", VECTORS, 4), ("cnn", IMAGES, 6), ("gpt", TEXT, 6)]


def inputs(task, batch=3):
    """Return a batch of random inputs."""
    generator = torch.Generator().manual_seed(1)
    if task.kind == "tokens":
        return torch.randint(0, task.classes, (batch, *task.input_shape), generator=generator)
    return torch.randn(batch, *task.input_shape, generator=generator)


@pytest.mark.parametrize(("name", "task", "layers"), CASES)
def test_models_are_sequences_of_layers_with_parameters(name, task, layers):
    model = models.build(name, task)
    assert type(model) is nn.Sequential
    assert len(model) == layers
    assert all(any(True for _ in layer.parameters()) for layer in model)


@pytest.mark.parametrize(("name", "task", "layers"), CASES)
def test_models_split_at_any_layer(name, task, layers):
    torch.manual_seed(0)
    model = models.build(name, task)
    x = inputs(task)
    expected = model(x)
    for cut in range(1, layers):
        assert torch.equal(model[cut:](model[:cut](x)), expected)


@pytest.mark.parametrize(("name", "task", "layers"), CASES)
def test_models_return_a_score_for_each_class(name, task, layers):
    leading = (3,) if task.kind == "values" else (3, *task.input_shape)
    assert models.build(name, task)(inputs(task)).shape == (*leading, task.classes)


@pytest.mark.parametrize(("name", "task", "layers"), CASES)
def test_the_same_seed_gives_the_same_weights(name, task, layers):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.build(name, task).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("name", "task", "layers"), CASES)
def test_every_parameter_gets_a_gradient(name, task, layers):
    model = models.build(name, task)
    model(inputs(task)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("shape", [(4, 4), (9, 7), (3, 32, 32)])
def test_cnn_takes_other_images(shape):
    task = make_task("values", shape)
    assert models.build("cnn", task)(inputs(task)).shape == (3, 5)


def test_gpt_sees_the_past_only():
    torch.manual_seed(0)
    model = models.build("gpt", TEXT)
    x = inputs(TEXT, batch=1)
    changed = x.clone()
    changed[0, 9] = (x[0, 9] + 1) % TEXT.classes
    same = np.isclose(model(x).detach(), model(changed).detach(), rtol=0, atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 9 + [False] * 7


def test_gpt_takes_shorter_texts():
    x = inputs(TEXT)
    torch.manual_seed(0)
    model = models.build("gpt", TEXT)
    assert torch.allclose(model(x)[:, :5], model(x[:, :5]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("rnn", IMAGES, r"model 'rnn' is not one of mlp, cnn, gpt"),
        ("gpt", IMAGES, r"'gpt' takes text, not toy \(samples of shape \(1, 8, 8\), 5 classes\)"),
        ("mlp", TEXT, r"'mlp' takes arrays of numbers, not toy \(samples of shape \(16,\), 11 sym"),
        ("cnn", VECTORS, r"'cnn' takes images .* not toy \(samples of shape \(7,\)"),
        ("cnn", make_task("values", (1, 3, 8)), r"at least 4×4"),
    ],
)
def test_models_refuse_other_data(name, task, message):
    with pytest.raises(ArgumentError, match=message):
        models.build(name, task)
