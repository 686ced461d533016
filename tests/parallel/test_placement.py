"""Which GPU a rank takes, and what is said where there is none."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pycomm
from pycomm.devices import process
from pycomm.devices.base import DeviceError
from pycomm.errors import ArgumentError, MissingError, UnsupportedError
from pycomm.parallel import placement


def fake(device: int, name: str = "") -> SimpleNamespace:
    return SimpleNamespace(runtime=SimpleNamespace(device=device, identity=name or str(device)))


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs for torch, CuPy for pycomm, which takes the current one; return which was set."""
    current = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    @contextlib.contextmanager
    def device(wanted):
        current.append(wanted.index)
        yield

    def found():
        if process.known_device() is None:
            process.use(fake(current[-1]))
        return process.known_device()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(placement, "import_cupy", lambda: None)
    monkeypatch.setattr(placement, "process_device", found)
    yield current
    process.use(None)


@pytest.mark.parametrize("place", range(5))
def test_gpus_are_dealt_out_in_turn_and_made_current_first(gpus, place: int) -> None:
    comm = SimpleNamespace(
        rank=9, local=SimpleNamespace(rank=place), all_gather_object=lambda x: [x]
    )
    assert placement.place(nn.Linear(1, 1), comm, "cuda") == torch.device("cuda", place % 2)
    assert gpus == [place % 2] and process.known_device().runtime.device == place % 2


def test_a_gpu_of_ones_own_choice_and_one_that_is_in_use(gpus) -> None:
    comm = pycomm.init()
    with pytest.raises(ArgumentError, match="rank 0: device='cuda:7', but there are 2 GPUs"):
        placement.place(nn.Linear(1, 1), comm, "cuda:7")
    assert placement.place(nn.Linear(1, 1), comm, "cuda:1").index == 1
    assert placement.place(nn.Linear(1, 1), comm, "cuda").index == 1, "in use already"
    with pytest.raises(
        ArgumentError, match="device='cuda:0', but this process uses cuda:1 already"
    ):
        placement.place(nn.Linear(1, 1), comm, torch.device("cuda", 0))


def test_a_gpu_that_cannot_be_used(gpus, monkeypatch) -> None:
    def refuse(_):
        raise RuntimeError("CUDA error: all devices are busy")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    with pytest.raises(DeviceError, match="rank 0: cuda:0 cannot be used: CUDA error: all devi"):
        placement.place(nn.Linear(1, 1), pycomm.init(), "cuda")


def test_no_gpu_or_no_cupy(gpus, monkeypatch, caplog) -> None:
    def no_cupy():
        raise MissingError("CUDA kernels need CuPy: pip install")

    def refused(match: str) -> None:
        with pytest.raises(MissingError, match=match):
            placement.place(nn.Linear(1, 1), pycomm.init(), "cuda")
        assert placement.default_device(pycomm.init()) == "cpu"

    assert placement.default_device(pycomm.init()) == "cuda"
    placement._say.cache_clear()
    monkeypatch.setattr(placement, "import_cupy", no_cupy)
    with caplog.at_level(logging.WARNING):
        refused("rank 0: CUDA kernels need CuPy: pip install")
        refused("rank 0: CUDA kernels need CuPy: pip install")
    assert [r.message for r in caplog.records] == [
        "rank 0: training on the CPU, although there is a GPU: rank 0: CUDA kernels need CuPy: "
        "pip install"
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("rank 0: torch finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES, or train on the")
    monkeypatch.setattr(torch.version, "cuda", None)
    refused(r"rank 0: torch .* cannot use CUDA: install a build of torch for CUDA \(https:")
    assert len(caplog.records) == 1


def test_where_parameters_are(gpus) -> None:
    def on(device: str) -> torch.Tensor:
        return SimpleNamespace(device=torch.device(device))

    comm = SimpleNamespace(rank=3)
    assert placement.common_device([], comm) == torch.device("cpu")
    with pytest.raises(UnsupportedError, match=r"'w' is on meta \(rank 3\): move the model with"):
        placement.common_device([("w", on("meta"))], comm)
    assert placement.common_device([("a", on("cuda:1"))], comm).index == 1
    assert gpus == [1], "pycomm's from now on"
    with pytest.raises(
        ArgumentError, match=r"'w' is on cuda:0 \(rank 3\), which uses cuda:1: move"
    ):
        placement.common_device([("w", on("cuda:0"))], comm)
    with pytest.raises(ArgumentError, match=r"'b' is on cpu \(rank 3\), but others are on cuda:1"):
        placement.common_device([("a", on("cuda:1")), ("b", on("cpu"))], comm)
