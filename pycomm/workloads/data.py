"""Where the data come from: the digits, Python's own source, or a path of the user's."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch.utils.data import TensorDataset

from pycomm.errors import ArgumentError
from pycomm.workloads import text
from pycomm.workloads.task import Defaults, Task, tensor_pair

TEST_SHARE = 0.2
"""The share of samples held out where a data set has no test part of its own."""

Arrays = Mapping[str, np.ndarray]


def load(source: str) -> Task:
    """Return the task that `--data source` means; the same on every rank.

    Args:
        source: a name in `SOURCES`; or a path: an .npz file with x and y (and x_test and y_test,
            or else a fifth of the samples is held out), a text file, or a folder of text files.

    Raises:
        ArgumentError: there is no such name or path, or its contents cannot be used.
    """
    if source in SOURCES:
        return SOURCES[source]()
    path = Path(source).expanduser()
    if path.is_dir():
        return text.text_task(source, text.read_folder(path))
    if path.is_file() and path.suffix in text.SUFFIXES:
        return text.text_task(source, text.read_all([path]))
    if path.is_file() and path.suffix == ".npz":
        return _npz(path)
    if path.is_file():
        raise ArgumentError(
            f"{path} is neither an .npz file (write one with numpy.savez(path, x=…, y=…)) nor text "
            f"({' '.join(text.SUFFIXES)})"
        )
    names = " or ".join(SOURCES)
    raise ArgumentError(
        f"--data {source!r} is neither {names} nor an existing file or folder "
        f"(looked for {path.absolute()})"
    )


def digits() -> Task:
    """Return scikit-learn's 1 797 handwritten digits: images (1, 8, 8), a fifth held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    defaults = Defaults(model="cnn", epochs=12, steps=None, batch_size=64, lr=2e-3)
    return _classification("digits", {"x": bunch.images[:, None], "y": bunch.target}, defaults)


def stdlib() -> Task:
    """Return the characters of Python's standard library; the last twentieth is held out."""
    return text.text_task("text", text.standard_library())


SOURCES: dict[str, Callable[[], Task]] = {"digits": digits, "text": stdlib}
"""The data that every machine has, by the name that `--data` knows them by."""


def _npz(path: Path) -> Task:
    arrays = _read_npz(path)
    _check_arrays(path, arrays)
    defaults = Defaults(model="mlp", epochs=20, steps=None, batch_size=64, lr=1e-3)
    return _classification(str(path), arrays, defaults)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"{path} cannot be read as an .npz file of numbers: {error}") from error


def _check_arrays(path: Path, arrays: Arrays) -> None:
    pairs = [("x", "y")] + [("x_test", "y_test")] * bool({"x_test", "y_test"} & set(arrays))
    for x, y in pairs:
        for key in (x, y):
            if key not in arrays:
                raise ArgumentError(f"{path} has no array {key!r}; it has {sorted(arrays)}")
        _check_pair(f"{path}: {x}", arrays[x], f"{path}: {y}", arrays[y])
    if arrays["x"].shape[1:] != arrays.get("x_test", arrays["x"]).shape[1:]:
        raise ArgumentError(
            f"{path}: samples of x have shape {arrays['x'].shape[1:]}, "
            f"those of x_test {arrays['x_test'].shape[1:]}"
        )


def _check_pair(x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> None:
    if x.ndim < 2 or x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ArgumentError(
            f"{x_name} has shape {x.shape} and dtype {x.dtype}: it must be (samples, …) of finite "
            "real numbers"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise ArgumentError(
            f"{y_name} has shape {y.shape} and dtype {y.dtype}: it must be (samples,) of class "
            "numbers from 0"
        )
    if len(x) != len(y) or len(x) < 2:
        raise ArgumentError(
            f"{x_name} has {len(x)} samples, {y_name} has {len(y)}: at least 2, as many of each"
        )


def _classification(name: str, arrays: Arrays, defaults: Defaults) -> Task:
    train_x, train_y, test_x, test_y = _split(arrays)
    mean, std = _scale(train_x)
    return Task(
        name=name,
        kind="values",
        train=TensorDataset(*tensor_pair((train_x - mean) / std, train_y)),
        test=TensorDataset(*tensor_pair((test_x - mean) / std, test_y)),
        input_shape=train_x.shape[1:],
        classes=int(max(train_y.max(), test_y.max())) + 1,
        defaults=defaults,
    )


def _split(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x and y to train on and to test on; the split has a fixed seed."""
    x, y = arrays["x"], arrays["y"]
    if "x_test" in arrays:
        return x, y, arrays["x_test"], arrays["y_test"]
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [max(1, round(len(x) * TEST_SHARE))])
    return x[train], y[train], x[test], y[test]


def _scale(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation: of each feature of (samples, features), else of all values."""
    axes = 0 if x.ndim == 2 else None
    std = np.asarray(x.std(axes, dtype=np.float64))
    return np.asarray(x.mean(axes, dtype=np.float64)), np.where(std > 0, std, 1.0)
