"""Run by mpirun: both trainers on GPUs give what one process gives, and leave no memory behind."""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.devices.process import process_device
from tests.training import conv, dense, images, samples, sgd

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}


def reference(model, batches, device):
    """Return the losses and the weights of training in one process on the same GPU."""
    model.to(device)
    optimizer, losses = sgd(list(model.named_parameters())), []
    for x, t in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(x.to(device)), t.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


def compare(trainer, losses, expected, bound: float) -> None:
    for loss, other in zip(losses, expected[0], strict=True):
        assert abs(loss - other) <= bound * max(1.0, abs(other)), (loss, other)
    for name, p in trainer.module.named_parameters():
        assert p.is_cuda and p.grad.is_cuda, name
        difference = (p - expected[1][name]).abs().max().item()
        assert difference <= bound * expected[1][name].abs().max().item(), (name, difference)


def check_parity(comm, dtype: torch.dtype) -> None:
    bound = BOUNDS[dtype]
    few = [images(4 * comm.size, k, dtype) for k in range(5)]
    data = pycomm.DataParallelTrainer(conv(0, dtype), sgd, cross_entropy, comm, device="cuda")
    shares = [[part.tensor_split(comm.size)[comm.rank] for part in batch] for batch in few]
    losses = [data.step(*share) for share in shares]
    compare(data, losses, reference(conv(0, dtype), few, data.device), bound)

    some = [(x.to(dtype), t) for x, t in (samples(9, k) for k in range(5))]
    model = dense(0).to(dtype)
    stages = pycomm.ModelParallelTrainer(model, sgd, cross_entropy, comm, 3, device="cuda")
    losses = [stages.step(*batch) for batch in some]
    compare(stages, losses, reference(dense(0).to(dtype), some, stages.device), bound)


def check_memory(comm, steps: int = 200) -> None:
    """After some steps, more of them take no more memory."""
    data = TensorDataset(*images(64, 1))
    trainer = pycomm.DataParallelTrainer(
        conv(0), sgd, cross_entropy, comm, device="cuda", precision="bf16"
    )
    trainer.fit(data, steps=10, batch_size=16, progress=False)

    def used() -> tuple[int, int]:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), process_device().slabs.nbytes

    before = used()
    trainer.fit(data, steps=10 + steps, batch_size=16, progress=False)
    assert used() == before
    assert all(row["gpu_bytes"] > 0 for row in trainer.report())


def check_checkpoints(comm, folder: str) -> None:
    """A run goes on elsewhere: on the CPU, and on the GPU again."""
    data = TensorDataset(*samples(12, 9))
    for steps, device in ((2, "cuda"), (4, "cpu"), (6, "cuda")):
        trainer = pycomm.ModelParallelTrainer(dense(3), sgd, cross_entropy, comm, 2, device=device)
        trainer.fit(data, steps=steps, batch_size=4, checkpoint=folder, progress=False)
        assert trainer.progress.step == steps


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    world = pycomm.init(timeout=120)
    for kind in BOUNDS:
        check_parity(world, kind)
    check_memory(world)
    check_checkpoints(world, sys.argv[1])
