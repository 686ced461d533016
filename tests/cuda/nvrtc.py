"""NVRTC by ctypes, with those functions of cupy.cuda.nvrtc that pycomm uses: it needs no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class NVRTCError(RuntimeError):
    """A call failed."""


class Nvrtc:
    """The library of the package nvidia-cuda-nvrtc."""

    NVRTCError = NVRTCError

    def __init__(self) -> None:
        folder = _folder()
        for builtins in folder.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise NVRTCError(f"{name}: {self._library.nvrtcGetErrorString(status).decode()}")

    def getVersion(self) -> tuple[int, int]:  # noqa: N802
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def getSupportedArchs(self) -> list[int]:  # noqa: N802
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return list(found)

    def createProgram(  # noqa: N802
        self, source: str, name: str, headers: Sequence[str], names: Sequence[str]
    ) -> ctypes.c_void_p:
        program = ctypes.c_void_p()
        text = (source.encode(), name.encode())
        self._call("nvrtcCreateProgram", ctypes.byref(program), *text, 0, None, None)
        return program

    def addNameExpression(self, program: ctypes.c_void_p, name: str) -> None:  # noqa: N802
        self._call("nvrtcAddNameExpression", program, name.encode())

    def compileProgram(self, program: ctypes.c_void_p, options: Sequence[str]) -> None:  # noqa: N802
        texts = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        self._call("nvrtcCompileProgram", program, len(options), texts)

    def getLoweredName(self, program: ctypes.c_void_p, name: str) -> str:  # noqa: N802
        found = ctypes.c_char_p()
        self._call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(found))
        return (found.value or b"").decode()

    def getCUBIN(self, program: ctypes.c_void_p) -> bytes:  # noqa: N802
        return self._text("CUBIN", program)

    def getPTX(self, program: ctypes.c_void_p) -> bytes:  # noqa: N802
        return self._text("PTX", program)

    def getProgramLog(self, program: ctypes.c_void_p) -> str:  # noqa: N802
        return self._text("ProgramLog", program).rstrip(b"\0").decode()

    def destroyProgram(self, program: ctypes.c_void_p) -> None:  # noqa: N802
        self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        room = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, room)
        return room.raw


def available() -> bool:
    """Say whether the library is installed."""
    try:
        return any(_folder().glob("libnvrtc.so.*"))
    except (ImportError, StopIteration):
        return False


def _folder() -> Path:
    nvidia = importlib.util.find_spec("nvidia")
    places = nvidia.submodule_search_locations if nvidia else None
    return next(found.parent for p in places or () for found in Path(p).glob("**/libnvrtc.so.*"))
