"""Compiles kernels of csrc/cuda by NVRTC; what was compiled once is kept on disk.

Not by CuPy's RawModule: it appends -ftz=true, which flushes denormals to zero, and its cache does
not see when a header changes.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple

from pycomm.errors import CommError
from pycomm.kernels.launcher import expression_of, file_of

OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""The arithmetic is that of the CPU: no contraction, denormals kept, exact division."""


class Binary(NamedTuple):
    """Machine code, or PTX, and the symbol of the kernel in it."""

    symbol: str
    code: bytes


def csrc() -> Path:
    """Return the folder of the sources: inside the package, or beside it in a working copy."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "csrc"
    return inside if inside.exists() else package.parent / "csrc"


def default_cache() -> Path:
    """Return the folder for compiled kernels, in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pycomm" / "kernels"


def compiled(nvrtc: Any, kernel: str, capability: int, folder: Path) -> Binary:
    """Return a kernel for GPUs of a compute capability, such as 90, from `folder` if it is there.

    Args:
        nvrtc: the functions of cupy.cuda.nvrtc.

    Raises:
        CommError: it does not compile; with NVRTC's log.
    """
    known = nvrtc.getSupportedArchs()
    exact = capability in known
    arch = f"sm_{capability}" if exact else f"compute_{max(a for a in known if a <= capability)}"
    key = "\n".join([kernel, arch, str(nvrtc.getVersion()), *OPTIONS, _sources()])
    path = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.kernel"
    found = _read(path)
    if found is None:
        found = _compile(nvrtc, kernel, arch, exact)
        _write(path, found)
    return found


@cache
def _sources() -> str:
    """Return the text of all sources: any change compiles anew."""
    files = sorted([*csrc().glob("*.h"), *csrc().glob("cuda/*")])
    return "\n".join(file.read_text() for file in files)


def _compile(nvrtc: Any, kernel: str, arch: str, exact: bool) -> Binary:
    file, expression = file_of(kernel), expression_of(kernel)
    program = nvrtc.createProgram((csrc() / "cuda" / file).read_text(), file, (), ())
    options = (*OPTIONS, f"--gpu-architecture={arch}", f"--include-path={csrc()}")
    try:
        nvrtc.addNameExpression(program, expression)
        nvrtc.compileProgram(program, options)
        code = nvrtc.getCUBIN(program) if exact else nvrtc.getPTX(program)
        return Binary(nvrtc.getLoweredName(program, expression), code)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise CommError(f"{kernel} of {file} does not compile for {arch}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)


def _read(path: Path) -> Binary | None:
    try:
        symbol, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return Binary(symbol.decode(), code)


def _write(path: Path, binary: Binary) -> None:
    """Keep a binary, whole or not at all; where nothing can be written it is compiled anew."""
    made = path.with_suffix(f".{os.getpid()}-{get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(binary.symbol.encode() + b"\n" + binary.code)
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
