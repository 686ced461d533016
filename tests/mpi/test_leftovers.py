"""What compression has left for later is in checkpoints, and fits any number of ranks."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.parallel.compression import METHODS
from pycomm.parallel.reducer import Reducer
from tests.training import adamw, assert_same_bits, conv, images, shared_folder
from tests.training import one_thread as one_thread

SETTINGS = ["topk:0.3", "powersgd:1", "fp8:e5m2"]


def make(comm, method: str, seed: int = 0, **options) -> pycomm.DataParallelTrainer:
    options = {"compression": method, **options}
    return pycomm.DataParallelTrainer(conv(seed), adamw, cross_entropy, comm, **options)


def train(trainer, steps: int, folder=None) -> None:
    data = TensorDataset(*images(24, 3))
    trainer.fit(data, steps=steps, batch_size=6, checkpoint=folder, progress=False)


def left(trainer) -> dict[str, dict]:
    return trainer._way.reducer.leftovers()


def states(trainer) -> list[torch.Tensor]:
    compressed = trainer._way.reducer._compressed
    return [tensor for compression in compressed for tensor in compression.state.values()]


def total(comm, trainer) -> dict[str, torch.Tensor]:
    """Return what is left of each parameter on all ranks together, in float64."""
    found: dict[str, torch.Tensor] = {}
    for of_rank in comm.all_gather_object(left(trainer)):
        for name, entry in of_rank.items():
            whole = found.setdefault(name, torch.zeros(entry["residual"].shape).double())
            whole += entry["residual"]
            if "sums" in entry:
                begin, values = entry["sums"]["begin"], entry["sums"]["residual"]
                whole.view(-1)[begin : begin + len(values)] += values
    return found


@pytest.mark.parametrize("method", [*METHODS, *SETTINGS])
def test_a_resumed_run_has_the_same_bits(comm, tmp_path, method) -> None:
    folder = shared_folder(comm, tmp_path)
    expected = make(comm, method, bucket_bytes=700)
    train(expected, 6)
    train(make(comm, method, bucket_bytes=700), 3, folder)
    resumed = make(comm, method, 1, bucket_bytes=700)
    train(resumed, 6, folder)
    assert_same_bits(resumed.module, expected.module)
    assert any(entry["residual"].any() for entry in left(resumed).values())
    for mine, its in zip(states(resumed), states(expected)):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_lost_on_fewer_and_more_ranks(comm, tmp_path, method) -> None:
    """With a half of the ranks, and then with all of them again."""
    folder = shared_folder(comm, tmp_path)
    first = make(comm, method)
    train(first, 3)
    first.save(folder)
    expected = total(comm, first)
    assert any(part.any() for part in expected.values())
    largest = max(comm.all_gather_object(largest_left(first)))
    fewer = comm.split(0 if comm.rank < (comm.size + 1) // 2 else None)
    if fewer is not None:
        some = make(fewer, method, 1)
        some.load(folder)
        assert_close(total(fewer, some), expected, largest)
        some.save(folder)
        fewer.close()
    comm.barrier()
    again = make(comm, method, 2, bucket_bytes=700)
    again.load(folder)
    assert_close(total(comm, again), expected, largest)


def largest_left(trainer) -> float:
    parts = [e["residual"] for e in left(trainer).values()]
    parts += [e["sums"]["residual"] for e in left(trainer).values() if "sums" in e]
    return max(part.abs().max().item() for part in parts if part.numel())


def assert_close(found: dict, expected: dict, largest: float) -> None:
    """Residuals are float32, and those of ranks cancel: what is lost is of the largest of them."""
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=1e-5, atol=2**-22 * largest)


def test_checkpoints_without_leftovers_begin_with_none(comm, tmp_path) -> None:
    """Those of older versions, and those of runs that did not compress."""
    folder = shared_folder(comm, tmp_path)
    train(make(comm, "topk"), 2, folder)
    if comm.rank == 0:
        index = folder / (folder / "latest").read_text() / "index.json"
        found = json.loads(index.read_text())
        assert found.pop("leftovers") == [f"leftovers-{rank}.pt" for rank in range(comm.size)]
        index.write_text(json.dumps(found))
    comm.barrier()
    trainer = make(comm, "topk", 1)
    train(trainer, 1)
    trainer.load(folder)
    assert not any(entry["residual"].any() for entry in left(trainer).values())


def test_another_method_takes_residuals(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    train(make(comm, "topk"), 2, folder)
    trainer = make(comm, "powersgd:1", 1)
    trainer.load(folder)
    assert any(entry["residual"].any() for entry in left(trainer).values())
    train(trainer, 4)
    without = make(comm, None, 1)
    without.load(folder)
    assert without.progress.step == 2


def test_parameters_keep_their_leftovers_in_other_buckets(comm) -> None:
    """By name and element, whatever the order in memory, and the buckets."""
    module = conv().to(memory_format=torch.channels_last)
    buckets = {"op": "sum", "algorithm": None, "compression": "int8"}
    first = Reducer(module.named_parameters(), comm, bucket_bytes=1 << 20, **buckets)
    for number, compression in enumerate(first._compressed):
        for tensor in compression.state.values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    other = Reducer(module.named_parameters(), comm, bucket_bytes=300, **buckets)
    assert len(other.buckets) > len(first.buckets)
    everyones = comm.all_gather_object(first.leftovers())
    other.restore(everyones)
    for name, entry in other.leftovers().items():
        assert torch.equal(entry["residual"], everyones[comm.rank][name]["residual"])
        assert entry["residual"].stride() == module.get_parameter(name).stride()
    found = comm.all_gather_object(other.leftovers())
    for name, _ in module.named_parameters():
        assert torch.equal(sums(found, name), sums(everyones, name)), name


def sums(everyones, name: str) -> torch.Tensor:
    parts = sorted(
        [e[name]["sums"] for e in everyones if len(e[name]["sums"]["residual"])],
        key=lambda part: part["begin"],
    )
    return torch.cat([part["residual"] for part in parts])
