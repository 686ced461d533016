"""Kernels run on the caller's current stream: what is captured into a graph runs when it does."""

from __future__ import annotations

import numpy as np

from tests.gpu.device import cupy_or_skip, torch_or_skip

cupy = cupy_or_skip()

from pycomm.types import DTYPES, SUM  # noqa: E402

F32 = DTYPES["float32"]
COUNT = 100_003


def test_cupys_current_stream(place):
    a, b = cupy.arange(COUNT, dtype="float32"), cupy.ones(COUNT, "float32")
    out, stream = cupy.zeros(COUNT, "float32"), cupy.cuda.Stream(non_blocking=True)
    place.kernels.reduce([a, b], cupy.empty_like(out), F32, SUM)  # compiles
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        place.kernels.reduce([a, b], out, F32, SUM)
        graph = stream.end_capture()
    cupy.cuda.Device().synchronize()
    assert not out.any(), "captured, not run"
    graph.launch(stream)
    stream.synchronize()
    assert np.array_equal(cupy.asnumpy(out), np.arange(1, COUNT + 1, dtype="float32"))


def test_torchs_current_stream(place):
    torch = torch_or_skip()
    a, b = torch.arange(COUNT, device="cuda").float(), torch.ones(COUNT, device="cuda")
    out, graph = torch.zeros_like(a), torch.cuda.CUDAGraph()
    place.kernels.reduce([a, b], torch.empty_like(out), F32, SUM)  # compiles
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        place.kernels.reduce([a, b], out, F32, SUM)
    torch.cuda.synchronize()
    assert not out.any(), "captured, not run"
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, a + 1)


def test_what_a_stream_was_given_before_comes_first(place):
    """The kernel reads what slow work on the same stream writes."""
    torch = torch_or_skip()
    x = torch.zeros(COUNT, device="cuda")
    square = torch.rand(4096, 4096, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            square = square @ square * 1e-4
        x.fill_(3.0)
        out = torch.empty_like(x)
        place.kernels.reduce([x, x.clone()], out, F32, SUM)
        assert bool((out == 6).all())
