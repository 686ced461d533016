"""Traces open in Perfetto: one file a rank, complete spans."""

from __future__ import annotations

import json

from tests.launch import mpirun


def test_every_rank_writes_its_operations(tmp_path):
    program = """
import numpy as np, pycomm
comm = pycomm.init()
comm.all_reduce(np.ones(1000))
comm.barrier()
"""
    result = mpirun(2, "-c", program, env={"PYCOMM_TRACE": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        events = json.loads((tmp_path / f"rank-{rank}.json").read_text())["traceEvents"]
        assert events[0] == {
            "name": "process_name",
            "ph": "M",
            "pid": rank,
            "args": {"name": f"rank {rank}"},
        }
        spans = {e["name"]: e for e in events[1:]}
        assert spans["all_reduce"]["args"] == {"nbytes": 8000}
        assert spans["barrier"]["ts"] >= spans["all_reduce"]["ts"] + spans["all_reduce"]["dur"]
