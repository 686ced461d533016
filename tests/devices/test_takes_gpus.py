"""What MPI libraries say of memory of GPUs, in the words of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pycomm.transport import mpi


def query(error, answer):
    """Return MPICH's function: (kind 0 for CUDA, where to) → error code."""

    def ask(kind, flag):
        assert kind == 0
        flag._obj.value = answer
        return error

    return ask


LIBRARIES = [
    ("MPIX_Query_cuda_support", lambda: 1, True),
    ("MPIX_Query_cuda_support", lambda: 0, False),
    ("MPIX_Query_cuda_support", lambda: -1, False),
    ("MPIX_GPU_query_support", query(0, 1), True),
    ("MPIX_GPU_query_support", query(0, 0), False),
    ("MPIX_GPU_query_support", query(1, 0), False),
    ("MPI_Init", lambda: 1, False),
]


@pytest.mark.parametrize(("name", "function", "takes"), LIBRARIES)
def test_what_a_library_says(name, function, takes, monkeypatch):
    monkeypatch.setattr(mpi, "_library", lambda module: SimpleNamespace(**{name: function}))
    assert mpi.takes_gpus(None) is takes
