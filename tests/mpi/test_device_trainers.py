"""Trainers on doubles of GPUs: the losses, weights and checkpoints of a run on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.devices import process
from pycomm.errors import ArgumentError, MismatchError
from pycomm.parallel import placement
from pycomm.trainers.report import print_rows
from tests.devices.host_tensor import HostTensor, torch_on_double
from tests.mpi.devices import doubles
from tests.training import (
    adamw,
    conv,
    dense,
    images,
    samples,
    sgd,
    shared_folder,
)
from tests.training import one_thread as one_thread

DELAY_S = 0.0001


SHARED, OWN, APART = {"gpus": 1}, {"gpus": 8}, {"gpus": 8, "peers": ()}
"""All ranks on one GPU; each on its own; each on its own without access to others."""


@contextlib.contextmanager
def gpus(comm: pycomm.Communicator, **layout: Any) -> Iterator[pycomm.Communicator]:
    """Give the ranks doubles, which torch takes for GPUs."""
    settings = {"delay_s": DELAY_S, "segment_bytes": 4096, **layout}
    with doubles(comm, **settings) as dev, torch_on_double():
        yield dev


def on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu() for name, p in module.named_parameters()}


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def share(comm, batch) -> list[torch.Tensor]:
    return [torch.tensor_split(part, comm.size)[comm.rank] for part in batch]


def whole(device: str) -> dict[str, Any]:
    """Return arguments for a trainer that updates alike on all devices, square roots included."""
    return {"device": device, "shard": False}


@pytest.mark.parametrize(("optimizer", "layout"), [(sgd, SHARED), (adamw, OWN), (sgd, APART)])
def test_data_parallel_has_the_bits_of_the_cpu(comm, optimizer, layout) -> None:
    def train(group, device):
        trainer = pycomm.DataParallelTrainer(
            conv(comm.rank),
            optimizer,
            cross_entropy,
            group,
            2,
            0.3,
            checksums=1,
            device=device,
            shard=False,
        )
        losses = [trainer.step(*share(comm, images(4 * comm.size + k, k))) for k in range(4)]
        return losses, trainer

    losses, trainer = train(comm, "cpu")
    with gpus(comm, **layout) as dev:
        again, other = train(dev, "cuda")
        flats = [bucket.flat for bucket in other._way.reducer.buckets]
        assert all(isinstance(p.grad, HostTensor) for p in other.module.parameters())
        assert all(isinstance(flat, HostTensor) for flat in flats)
        assert all(process.process_device().slabs.find(f.data_ptr(), f.nbytes) for f in flats)
        assert again == losses
        same_bits(on_cpu(other.module), on_cpu(trainer.module))


def test_a_wrapped_model_on_a_gpu_averages_its_gradients(comm) -> None:
    def gradients(group, device):
        model = pycomm.DataParallel(conv(comm.rank).to(device), group)
        x, t = (part.to(device) for part in share(comm, images(2 * comm.size, 1)))
        cross_entropy(model(x), t).backward()
        return {name: p.grad.cpu() for name, p in model.named_parameters()}

    expected = gradients(comm, placement.CPU)
    with gpus(comm, gpus=2) as dev:
        same_bits(gradients(dev, torch.device("cuda", 0)), expected)


@pytest.mark.parametrize("layout", [SHARED, OWN, APART])
def test_model_parallel_has_the_bits_of_the_cpu(comm, layout) -> None:
    seen: list[type] = []

    def train(group, device):
        model = dense(comm.rank)
        trainer = pycomm.ModelParallelTrainer(
            model,
            sgd,
            cross_entropy,
            group,
            3,
            clip_norm=0.2,
            device=device,
            shard=False,
        )
        trainer.module.register_forward_pre_hook(lambda _, args: seen.append(type(args[0])))
        losses = [trainer.step(*samples(5 + k, k)) for k in range(3)]
        return losses, trainer

    losses, trainer = train(comm, "cpu")
    seen.clear()
    with gpus(comm, **layout) as dev:
        again, other = train(dev, "cuda")
        assert set(seen) == {HostTensor}, "activations go from GPU to GPU"
        assert all(isinstance(p.grad, HostTensor) for p in other.module.parameters())
        assert again == losses
        same_bits(on_cpu(other.module), on_cpu(trainer.module))


class Watched(nn.Module):
    """Says what it is called with, and where its weight is."""

    def __init__(self, events: list):
        super().__init__()
        self.weight, self.tell = nn.Parameter(torch.ones(6).double()), events.append

    def forward(self, x):
        self.tell((type(x), self.weight.is_cuda))
        return x * self.weight


@pytest.mark.parametrize("given", ["with values", "on meta"])
def test_layers_are_measured_where_they_train(comm, monkeypatch, given) -> None:
    events: list = []
    model = dense(0)
    model.insert(0, Watched(events))
    if given == "on meta":
        model = model.to("meta")
    with gpus(comm) as dev:
        finish = torch.cuda.synchronize
        monkeypatch.setattr(
            torch.cuda, "synchronize", lambda d: (finish(d), events.append("waited"))
        )
        trainer = pycomm.ModelParallelTrainer(
            model,
            sgd,
            cross_entropy,
            dev,
            2,
            sample=samples(3, 0)[0],
            device="cuda",
            init=lambda name, module: None,
        )
        assert "measured time" in trainer.split.explain()
        once = ["waited", (HostTensor, True), "waited", "waited"]  # before, forward, and backward
        layer = once * 6  # one of which does not count
        others = ["waited"] * 3 * 6 * 7
        assert events == (layer + others if comm.rank == 0 else [])
        monkeypatch.undo()


def test_both_trainers_give_what_one_process_gives(comm) -> None:
    x, t = samples(8, 1)
    reference = dense(0)
    whole = cross_entropy(reference(x), t)
    whole.backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    with gpus(comm) as dev:
        model = pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, dev, 4, device="cuda")
        data = pycomm.DataParallelTrainer(dense(0), sgd, cross_entropy, dev, device="cuda")
        for trainer, batch in ((model, (x, t)), (data, share(comm, (x, t)))):
            assert abs(trainer.step(*batch) - whole.item()) <= 1e-13
            mine = {name: p.grad.cpu() for name, p in trainer.module.named_parameters()}
            for part in comm.all_gather_object(mine):
                for name, gradient in part.items():
                    difference = (gradient - expected[name]).norm()
                    assert difference <= 1e-12 * expected[name].norm(), name


def make(kind: str, group: pycomm.Communicator, device: str) -> pycomm.trainers.base.Trainer:
    model = dense(3)
    model.insert(4, nn.Dropout(0.2))
    if kind == "data":
        return pycomm.DataParallelTrainer(model, adamw, cross_entropy, group, **whole(device))
    return pycomm.ModelParallelTrainer(model, adamw, cross_entropy, group, 2, **whole(device))


@pytest.mark.parametrize("kind", ["data", "model"])
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_goes_on_elsewhere_with_the_same_bits(comm, tmp_path, kind, first) -> None:
    data, folder = TensorDataset(*samples(12, 9)), shared_folder(comm, tmp_path)

    def fit(device: str, steps: int, folder, group=comm) -> dict[str, torch.Tensor]:
        trainer = make(kind, group, device)
        trainer.fit(data, steps=steps, batch_size=4, checkpoint=folder, progress=False)
        return on_cpu(trainer.module)

    def anywhere(device: str, steps: int) -> dict[str, torch.Tensor]:
        if device == "cpu":
            return fit("cpu", steps, folder / "moved")
        with gpus(comm) as dev:
            return fit("cuda", steps, folder / "moved", dev)

    torch.manual_seed(comm.rank)
    expected = fit("cpu", 5, folder / "straight")
    torch.manual_seed(comm.rank)
    anywhere(first, 2)
    same_bits(anywhere("cuda" if first == "cpu" else "cpu", 5), expected)
    file = torch.load(next((folder / "moved").glob("step-*/part-0.pt")), weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in file["model"].values())


def test_the_gpus_random_generator_is_restored(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    gpu = torch.device("cuda", 0)
    with gpus(comm) as dev:
        trainer = make("data", dev, "cuda")
        saved = torch.Generator().manual_seed(1000 + comm.rank).get_state()
        torch.cuda.set_rng_state(saved, gpu)
        trainer.save(folder)
        torch.cuda.set_rng_state(torch.Generator().manual_seed(5).get_state(), gpu)
        trainer.load(folder)
        assert torch.equal(torch.cuda.get_rng_state(gpu), saved)


@pytest.mark.parametrize("kind", ["data", "model"])
def test_evaluation(comm, kind: str) -> None:
    def evaluate(group, device):
        metrics = {"accuracy": lambda y, t: (y.argmax(-1) == t).double().mean()}
        trainer = make(kind, group, device)
        return trainer.evaluate(TensorDataset(*samples(11, 1)), batch_size=4, metrics=metrics)

    expected = evaluate(comm, "cpu")
    with gpus(comm) as dev:
        assert evaluate(dev, "cuda") == expected


def test_the_report_tells_the_memory_of_gpus(comm) -> None:
    with gpus(comm) as dev:
        trainer = make("data", dev, "cuda")
        trainer.step(*share(comm, samples(8, 1)))
        rows = trainer.report()
        slabs = process.process_device().slabs.nbytes
    assert slabs > 0 and rows[comm.rank]["gpu_bytes"] == 1_000_000 + slabs
    out = io.StringIO()
    print_rows(rows, Console(file=out, width=120))
    assert "GPU MB" in out.getvalue() and f"{(slabs + 1_000_000) / 1e6:.1f}" in out.getvalue()


def test_a_module_decides_if_no_device_is_named(comm) -> None:
    with gpus(comm) as dev:
        there = dense(0).to(torch.device("cuda", 0))
        assert pycomm.DataParallelTrainer(there, sgd, cross_entropy, dev).device.type == "cuda"
        here = pycomm.DataParallelTrainer(dense(0), sgd, cross_entropy, dev, shard=False)
        assert here.device.type == "cpu" and type(here._way.reducer.buckets[0].flat) is torch.Tensor
        back = pycomm.DataParallelTrainer(there, sgd, cross_entropy, dev, device="cpu")
        assert all(type(tensor) is nn.Parameter for tensor in back.module.parameters())


def test_sharing_a_gpu_is_said_once(comm, caplog) -> None:
    placement._say.cache_clear()
    for number in (1, comm.size):
        with gpus(comm, gpus=number) as dev, caplog.at_level(logging.WARNING):
            for _ in range(2):
                placement.place(dense(0), dev, "cuda")
    said = [r.message for r in caplog.records if "take turns" in r.message]
    expected = f"rank 0: {comm.size} ranks have 1 GPU(s): those of one GPU take turns on it"
    assert said == [expected] * (comm.rank == 0 and comm.size > 1)


def test_errors_name_rank_and_device(comm) -> None:
    last = comm.size - 1
    with pytest.raises(
        pycomm.errors.MissingError, match=r"rank 0: torch .* cannot use CUDA: install a build"
    ):
        make("data", comm, "cuda")
    with pytest.raises(ArgumentError, match="device='tpu' is not 'cpu', 'cuda' or 'cuda:' and a n"):
        make("data", comm, "tpu")
    with gpus(comm) as dev:
        with pytest.raises(
            ArgumentError, match="rank 0: device='cuda:3', but this process uses cuda:0 already"
        ):
            make("model", dev, "cuda:3")
        if comm.size > 1:
            with pytest.raises(MismatchError, match=f"train on differ.* rank {last} has cpu"):
                make("data", dev, "cpu" if comm.rank == last else "cuda")
        process.process_device().runtime.device = 1
        with pytest.raises(
            ArgumentError,
            match=rf"'0.weight' is on cuda:0 \(rank {comm.rank}\), which uses cuda:1: move the",
        ):
            pycomm.DataParallel(dense(comm.rank).to(torch.device("cuda", 0)), comm)


def test_no_room_for_the_model(comm, monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate")

    with gpus(comm) as dev:
        model = dense(0)
        if comm.rank == 0:
            monkeypatch.setattr(type(model), "to", full)
        with pytest.raises(
            pycomm.errors.CommError, match=r"rank 0: no room for the \d+ bytes of a model on cuda:0"
        ):
            pycomm.DataParallelTrainer(model, sgd, cross_entropy, dev, device="cuda")
        monkeypatch.undo()
