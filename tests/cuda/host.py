"""The kernels of csrc/cuda built for the host, and a Launcher that runs them there."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from pycomm.kernels.device import HOST, DeviceView, device_view
from pycomm.kernels.launcher import BLOCK_THREADS, Program, expression_of, file_of, kernels_of
from tests.cuda.compilers import ROOT, Compiler, cxx

BUILD = ROOT / "build" / "cuda-host"

builders = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

_SOURCE = """\
#include "shim.h"
#include "cuda/{file}"
namespace {{
const shim::Kernel kernels[] = {{
{kernels}
}};
thread_local std::string reason;
}}
extern "C" __attribute__((visibility("default"))) const char* pycomm_launch(
    const char* name, unsigned grid, const void* args, size_t bytes, unsigned only) {{
  reason = "is no kernel of {file}";
  for (const shim::Kernel& kernel : kernels)
    if (!std::strcmp(kernel.name, name))
      reason = shim::launch(kernel, grid, args, bytes, {{{synchronises}, {threads}, only}});
  return reason.c_str();
}}
"""


class HostLauncher:
    """Runs kernels on the host, block after block; `multiprocessors` only decides how many.

    Args:
        copy: launchers with different numbers can run kernels of one file at the same time, each
            from a thread of its own.

    Attributes:
        launches: the name and the grid of every launch.
        only: if not 0, of each launch only the first and the last so many blocks are run.
        filler: what every byte of scratch memory is; not 0, so that nothing relies on zeros.
    """

    def __init__(self, multiprocessors: int = 2, compiler: Compiler | None = None, copy: int = 0):
        self.device = HOST
        self.multiprocessors, self.capability = multiprocessors, (9, 0)
        self.compiler = compiler or cxx()
        self.copy = copy
        self.launches: list[tuple[str, int]] = []
        self.only = 0
        self.filler = 255

    def launch(self, kernel: str, grid: int, args: bytes) -> None:
        """Run the blocks, then return."""
        assert 0 < grid < 1 << 31, f"{kernel}: a grid of {grid}"
        self.launches.append((kernel, grid))
        library = _library(file_of(kernel), self.compiler, self.copy)
        wrong = library.pycomm_launch(kernel.encode(), grid, args, len(args), self.only)
        assert not wrong, f"{kernel} {wrong.decode()}"

    def empty(self, nbytes: int) -> np.ndarray:
        """Return memory at a multiple of 16 bytes."""
        room = np.full(nbytes + 16, self.filler, np.uint8)
        start = -room.ctypes.data % 16
        return room[start : start + nbytes]

    def launch_program(self, program: Program, grid: int, args: bytes) -> None:
        """Fail: what Numba compiles for a GPU does not run here; see tests/twins."""
        raise NotImplementedError(program.name)

    def upload(self, data: bytes) -> DeviceView:
        """Return a copy of `data`."""
        memory = self.empty(len(data))
        memory[:] = np.frombuffer(data, np.uint8)
        return device_view(memory)


@cache
def being_built(file: str, compiler: Compiler) -> Future[Path]:
    """Begin to build the library of a kernel file, unless that is under way or done."""
    return builders.submit(build, file, compiler)


@cache
def _library(file: str, compiler: Compiler, copy: int) -> ctypes.CDLL:
    path = being_built(file, compiler).result()
    if copy:
        path = _copied(path, path.with_suffix(f".{copy}.so"))
    library = ctypes.CDLL(str(path))
    library.pycomm_launch.restype = ctypes.c_char_p
    library.pycomm_launch.argtypes = [
        ctypes.c_char_p,
        ctypes.c_uint,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
    ]
    return library


def _copied(library: Path, copy: Path) -> Path:
    """Return a copy of a library: loaded beside it, it has variables of its own."""
    if not copy.exists():
        made = copy.with_suffix(f".{os.getpid()}")
        shutil.copy(library, made)
        made.replace(copy)
    return copy


def build(file: str, compiler: Compiler) -> Path:
    """Return the library of a kernel file, built unless the same one is there already.

    PYCOMM_TEST_SANITIZE, such as address,undefined, builds it with these sanitizers.
    """
    source, sanitize = source_of(file), _sanitize_flags()
    text = "\n".join(
        [compiler.name, *compiler.command, *sanitize, source, *map(Path.read_text, _headers(file))]
    )
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    library = BUILD / f"{Path(file).stem}-{digest}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with library.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may build it
            if not library.exists():
                _compile(source, library, compiler, sanitize)
    return library


def _sanitize_flags() -> list[str]:
    sanitize = os.environ.get("PYCOMM_TEST_SANITIZE", "")
    debug = ["-fno-sanitize-recover=all", "-g", "-fno-omit-frame-pointer"]
    return [f"-fsanitize={sanitize}", *debug] if sanitize else []


def source_of(file: str) -> str:
    """Return the host program of a kernel file: all its kernels by name."""
    lines = [f'shim::kernel("{kernel}", &{expression_of(kernel)}),' for kernel in kernels_of(file)]
    return _SOURCE.format(
        file=file,
        kernels="\n".join(lines),
        synchronises=str(_synchronises(file)).lower(),
        threads=BLOCK_THREADS,
    )


def _synchronises(file: str) -> bool:
    """Say whether the threads of a block wait for each other, here or in what is included."""
    text = (ROOT / "csrc" / "cuda" / file).read_text()
    if re.search(r"\b__(syncthreads|syncwarp|\w+_sync)\b", text):
        return True
    return any(map(_synchronises, re.findall(r'#include "cuda/(.+)"', text)))


def _headers(file: str) -> list[Path]:
    csrc = ROOT / "csrc"
    found = [*csrc.glob("*.h"), *csrc.glob("cuda/*.h"), *(ROOT / "tests/cuda").glob("*.h")]
    return [csrc / "cuda" / file, *sorted(found)]


def _compile(source: str, library: Path, compiler: Compiler, sanitize: list[str]) -> None:
    program = library.with_suffix(f".{os.getpid()}.cpp")
    program.write_text(source)
    made = program.with_suffix(".so")
    compiler.library(program, made, [ROOT / "csrc", ROOT / "tests" / "cuda"], sanitize)
    made.replace(library)
    program.unlink()
