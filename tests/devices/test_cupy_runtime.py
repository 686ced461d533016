"""The runtime of a real GPU, on a stand-in for CuPy: what CUDA is asked, and what errors say."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from pycomm.devices import cupy_runtime
from pycomm.devices.base import HANDLE_BYTES, DeviceError, Stream
from pycomm.devices.cupy_runtime import CupyRuntime


class CudaRuntimeError(RuntimeError):
    def __init__(self, status: int):
        super().__init__(f"cudaError {status}")
        self.status = status


class FakeCudaRuntime:
    """cupy.cuda.runtime: notes calls; `refuse` maps a function to the status it fails with."""

    CUDARuntimeError = CudaRuntimeError
    memcpyDefault = 4  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: dict[str, list[int]] = {}
        self.uuids = {0: b"a" * 16, 1: b"b" * 16}
        self.status = 0

    def getDevice(self) -> int:  # noqa: N802
        return 1

    def getDeviceCount(self) -> int:  # noqa: N802
        return len(self.uuids)

    def getDeviceProperties(self, device: int) -> dict[str, bytes]:  # noqa: N802
        return {"uuid": self.uuids[device]}

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return 1000, 9000

    def eventQuery(self, event: int) -> int:  # noqa: N802
        return self.status

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            if self.refuse.get(name):
                raise CudaRuntimeError(self.refuse[name].pop())
            return {
                "malloc": 4096,
                "ipcGetMemHandle": b"m" * 64,
                "ipcGetEventHandle": b"e" * 64,
                "ipcOpenMemHandle": 8192,
                "ipcOpenEventHandle": 77,
                "deviceCanAccessPeer": 0,
                "streamIsCapturing": 1,
            }.get(name)

        return call


@pytest.fixture
def cuda(monkeypatch) -> FakeCudaRuntime:
    fake = FakeCudaRuntime()
    freed = SimpleNamespace(free_all_blocks=lambda: fake.calls.append(("free_all_blocks",)))
    cupy = SimpleNamespace(
        get_default_memory_pool=lambda: freed,
        cuda=SimpleNamespace(
            runtime=fake,
            alloc_pinned_memory=lambda nbytes: bytearray(b"?" * 2 * nbytes),
            Event=lambda **flags: SimpleNamespace(ptr=5, flags=flags),
            Stream=lambda non_blocking: SimpleNamespace(ptr=30, non_blocking=non_blocking),
            Device=lambda number: contextlib.nullcontext(),
            get_current_stream=lambda device: SimpleNamespace(ptr=20 + device),
        ),
    )
    monkeypatch.setattr(cupy_runtime, "import_cupy", lambda: cupy)
    monkeypatch.setattr(cupy_runtime, "CupyLauncher", lambda device, stream: (device, stream))
    return fake


@pytest.fixture
def gpu(cuda) -> CupyRuntime:
    return CupyRuntime()


def test_it_is_the_current_gpu_and_known_by_host_and_uuid(gpu):
    assert gpu.device == 1
    assert gpu.identity.split()[1] == (b"b" * 16).hex()


def test_streams_are_the_callers_and_own_ones_do_not_block(gpu):
    assert gpu.stream() == Stream(21)
    assert gpu.new_stream().owner.non_blocking
    _, launching = gpu.kernels._launcher
    assert launching() == 21
    with gpu.on(Stream(40)):
        assert launching() == 40
        with gpu.on(Stream(41)):
            assert launching() == 41
        assert launching() == 40
    assert launching() == 21


def test_calls_are_made_on_the_gpu_of_the_rank(gpu, cuda):
    gpu.copy(1, 2, 3, Stream(40))
    gpu.record(SimpleNamespace(ptr=5), Stream(40))
    gpu.wait(Stream(40), SimpleNamespace(ptr=5))
    assert cuda.calls == [
        ("setDevice", 1),
        ("memcpyAsync", 1, 2, 3, 4, 40),
        ("eventRecord", 5, 40),
        ("streamWaitEvent", 40, 5),
    ]


def test_events_are_shared_without_times(gpu, cuda):
    event = gpu.event(shared=True)
    assert event.flags == {"disable_timing": True, "interprocess": True}
    assert gpu.handle_of(event) == b"e" * 64
    opened = gpu.open_event(b"e" * 64 + b"\0" * 16)
    assert opened.ptr == 77
    assert cuda.calls[-1] == ("ipcOpenEventHandle", b"e" * 64)
    del opened
    assert cuda.calls[-1] == ("eventDestroy", 77)


def test_memory_goes_by_a_handle_and_its_size(gpu, cuda):
    memory = gpu.allocate(1 << 25)
    assert (memory.address, memory.nbytes) == (4096, 1 << 25)
    assert len(memory.handle) <= HANDLE_BYTES
    opened = gpu.open_memory(memory.handle.ljust(HANDLE_BYTES, b"\0"))
    assert (opened.address, opened.nbytes) == (8192, 1 << 25)
    assert ("ipcOpenMemHandle", b"m" * 64) in cuda.calls


def test_an_event_that_is_not_done_and_one_that_failed(gpu, cuda):
    event = gpu.event()
    assert gpu.query(event)
    cuda.status = 600
    assert not gpu.query(event)
    cuda.status = 700
    with pytest.raises(DeviceError, match="failed on cuda:1: CUDA error 700"):
        gpu.query(event)


def test_memory_that_others_keep_is_asked_for_before_giving_up(gpu, cuda):
    cuda.refuse["malloc"] = [2]
    assert gpu.allocate(64).address == 4096
    assert ("free_all_blocks",) in cuda.calls
    cuda.refuse["malloc"] = [2, 2]
    with pytest.raises(
        DeviceError, match="cannot allocate 64 bytes on cuda:1, which has 1000 of 9000 left"
    ):
        gpu.allocate(64)


def test_handles_that_cannot_be_opened_say_what_containers_need(gpu, cuda):
    cuda.refuse["ipcOpenMemHandle"] = [400]
    with pytest.raises(DeviceError, match=r"opening 64 bytes of another process .*--ipc=host"):
        gpu.open_memory(gpu.allocate(64).handle)
    cuda.refuse["ipcOpenEventHandle"] = [400]
    with pytest.raises(DeviceError, match=r"another process's event .*--pid=host.* cuda:1"):
        gpu.open_event(b"e" * 64)


def test_whether_a_stream_is_captured_is_asked(gpu, cuda):
    assert gpu.is_capturing(Stream(40)) is True
    assert cuda.calls[-1] == ("streamIsCapturing", 40)


def test_a_word_of_the_host_is_zero(gpu):
    word = gpu.host_word()
    assert word.dtype == "uint64" and word.tolist() == [0]
    word[0] = 3


def test_who_can_be_reached(gpu, cuda):
    host = gpu.identity.split()[0]
    assert gpu.can_access(gpu.identity)
    assert not gpu.can_access(f"{host} {cuda.uuids[0].hex()}")
    assert ("deviceCanAccessPeer", 1, 0) in cuda.calls
    assert gpu.can_access(f"{host} {(b'c' * 16).hex()}"), "out of sight, but on this host"
    assert not gpu.can_access(f"another {(b'b' * 16).hex()}")


def test_memory_of_the_host_is_page_locked(gpu, cuda):
    gpu.pin(4096, 100)
    gpu.unpin(4096)
    assert cuda.calls[-2:] == [("hostRegister", 4096, 100, 1), ("hostUnregister", 4096)]
    cuda.refuse["hostRegister"] = [2]
    with pytest.raises(DeviceError, match="page-locking 100 bytes of the host failed on cuda:1"):
        gpu.pin(4096, 100)
