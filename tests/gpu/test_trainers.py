"""Both trainers on several ranks of one GPU, by mpirun."""

from __future__ import annotations

import pytest

from tests.gpu.device import torch_or_skip
from tests.launch import mpirun

torch_or_skip()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_training_on_gpus(tmp_path, ranks: int) -> None:
    result = mpirun(ranks, "-m", "tests.gpu.train_on_ranks", tmp_path, timeout=280)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("parallel", ["data", "model"])
def test_the_defaults_read_the_digits(parallel: str) -> None:
    result = mpirun(2, "train.py", "--parallel", parallel, "--precision", "bf16", timeout=280)
    assert result.returncode == 0, result.stderr
    assert "GPU MB" in result.stdout
