"""The digits and a user's .npz: counts, splits, determinism, and an error for each mistake."""

import numpy as np
import pytest
import torch

from pycomm.errors import ArgumentError
from pycomm.workloads import data
from pycomm.workloads.task import accuracy, cross_entropy


def rows(tensor):
    """Return the samples of a tensor as hashable bytes."""
    return [sample.numpy().tobytes() for sample in tensor]


def save(path, **arrays):
    """Write an .npz file and return its path as text."""
    np.savez(path / "mine.npz", **arrays)
    return str(path / "mine.npz")


def test_digits_are_1797_images():
    task = data.load("digits")
    assert (len(task.train), len(task.test)) == (1438, 359)
    x, y = task.train.tensors
    assert (x.shape, x.dtype, y.dtype) == ((1438, 1, 8, 8), torch.float32, torch.int64)
    assert task.input_shape == (1, 8, 8)
    assert sorted(set(y.tolist())) == list(range(task.classes)) == list(range(10))


def test_digits_are_normalised_by_the_training_part():
    x = data.load("digits").train.tensors[0].double()
    assert abs(x.mean()) < 1e-6
    assert x.std(correction=0) == pytest.approx(1, abs=1e-6)


def test_digits_split_is_disjoint_complete_and_fixed():
    first, second = data.load("digits"), data.load("digits")
    train, test = rows(first.train.tensors[0]), rows(first.test.tensors[0])
    assert not set(train) & set(test)
    assert len(train) + len(test) == 1797
    for a, b in zip(first.train.tensors, second.train.tensors, strict=True):
        assert torch.equal(a, b)


def test_npz_holds_out_a_fifth(tmp_path):
    x = np.arange(200.0).reshape(50, 4)
    task = data.load(save(tmp_path, x=x, y=np.arange(50) % 3))
    assert (len(task.train), len(task.test)) == (40, 10)
    assert (task.input_shape, task.classes, task.defaults.model) == ((4,), 3, "mlp")
    kept = task.train.tensors[0].mean(0)
    assert torch.allclose(kept, torch.zeros(4), atol=1e-6)


def test_npz_test_part_is_used(tmp_path):
    x, y = np.eye(4, dtype="uint8"), np.arange(4)
    task = data.load(save(tmp_path, x=x, y=y, x_test=2 * x[:3], y_test=np.array([0, 1, 7])))
    assert (len(task.train), len(task.test), task.classes) == (4, 3, 8)
    assert task.test.tensors[1].tolist() == [0, 1, 7]


def test_constant_features_stay_finite(tmp_path):
    task = data.load(save(tmp_path, x=np.ones((10, 2)), y=np.zeros(10, int)))
    assert torch.equal(task.train.tensors[0], torch.zeros(8, 2))


X, Y = np.zeros((6, 2)), np.zeros(6, int)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"has no array 'y'; it has \['x'\]"),
        ({"x": X, "y": Y, "x_test": X}, r"has no array 'y_test'; it has \['x', 'x_test', 'y'\]"),
        ({"x": X, "y": Y[:5]}, r"x has 6 samples, .*y has 5"),
        ({"x": X, "y": Y, "x_test": X[:4], "y_test": Y}, r"x_test has 4 samples, .* has 6"),
        (
            {"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y},
            r"shape \(2,\), those of x_test \(1,\)",
        ),
        ({"x": X[:1], "y": Y[:1]}, r"x has 1 samples.*at least 2"),
        ({"x": X[0], "y": Y}, r"x has shape \(2,\) and dtype float64: it must be \(samples, …\)"),
        ({"x": X + np.nan, "y": Y}, r"finite real numbers"),
        ({"x": X, "y": Y - 1}, r"y has shape \(6,\) and dtype int64: it must be .*class numbers"),
        ({"x": X, "y": Y * 0.5}, r"y has shape \(6,\) and dtype float64"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(ArgumentError, match=message):
        data.load(save(tmp_path, **arrays))


def test_unknown_paths_are_refused():
    with pytest.raises(ArgumentError, match=r"'nowhere\.npz' is neither digits or text nor an ex"):
        data.load("nowhere.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ArgumentError, match=r"a\.csv is neither an \.npz file"):
        data.load(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_broken_npz_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"a\.npz cannot be read as an \.npz file of numbers"):
        data.load(str(tmp_path / "a.npz"))


def test_object_arrays_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"cannot be read as an \.npz file of numbers"):
        data.load(save(tmp_path, x=np.array([{}, {}]), y=Y))


def test_loss_and_accuracy_are_means_over_all_positions():
    output = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]])
    targets = torch.tensor([[0, 1], [0, 1]])
    good, bad = torch.log1p(torch.tensor([-2.0, 2.0]).exp()).tolist()
    assert accuracy(output, targets) == 0.75
    assert cross_entropy(output, targets).item() == pytest.approx((3 * good + bad) / 4)
