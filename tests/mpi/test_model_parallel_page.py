"""The examples of docs/model_parallel.md run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.training import one_thread as one_thread
from tests.training import shared_folder

PAGE = Path(__file__).parents[2] / "docs/model_parallel.md"


def test_the_examples(comm, tmp_path, monkeypatch, capsys) -> None:
    if comm.size % 2:
        pytest.skip("the second one has two stages")
    monkeypatch.chdir(shared_folder(comm, tmp_path))
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    assert math.isfinite(names["result"]["loss"]) and math.isfinite(names["loss"])
    assert Path("tagger").exists()
    comm.barrier()
    assert ("idled" in capsys.readouterr().out) == (comm.rank == 0)
