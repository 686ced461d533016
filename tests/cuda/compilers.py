"""The compilers that build the kernels for the host: c++, and clang to compare with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CXX = "c++"
FLAGS = (
    "-std=c++17 -O1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno "
    "-fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas"
).split()
_ZIG_CACHES = ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")


@dataclass(frozen=True)
class Compiler:
    """What makes an object of a C++ file; c++ makes a library of it, whoever compiled.

    Attributes:
        name: with the version, where a new one may come under the same command.
        command: the compiler and its flags.
    """

    name: str
    command: tuple[str, ...]

    def library(self, program: Path, made: Path, includes: Sequence[Path], more: Sequence[str]):
        """Compile `program` into the shared library `made`; `more` flags go to both steps."""
        object_file = made.with_suffix(".o")
        include = [f"-I{folder}" for folder in includes]
        _run([*self.command, *more, *include, "-c", "-o", object_file, program])
        _run([CXX, "-shared", *more, "-o", made, object_file])
        object_file.unlink()


def cxx() -> Compiler:
    """Return c++, GCC as a rule."""
    return Compiler(CXX, (CXX, *FLAGS))


@cache
def clang() -> Compiler | None:
    """Return clang++ on PATH, or the clang of the package ziglang; None where there is neither.

    None under sanitizers, too: they are those of c++.
    """
    if os.environ.get("PYCOMM_TEST_SANITIZE"):
        return None
    return _clang_on_path() or _clang_of_zig()


def _clang_on_path() -> Compiler | None:
    path = shutil.which("clang++")
    return Compiler(path, (path, *FLAGS)) if path else None


def _clang_of_zig() -> Compiler | None:
    """Return zig's clang with the headers of c++, which links, instead of zig's own."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    headers = [f"-I{folder}" for folder in _headers_of_cxx()]
    plain = ("-nostdlib++", "-nostdinc++", "-fno-sanitize=all", "-g0")
    name = f"ziglang {importlib.metadata.version('ziglang')}"
    command = (sys.executable, "-m", "ziglang", "c++", *plain, *headers, *FLAGS)
    return Compiler(name, (*command, "-Xclang", "-O1"))  # zig makes -O2 of -O1


def _headers_of_cxx() -> list[str]:
    """Return the folders of the C++ library's headers that c++ takes."""
    command = [CXX, "-E", "-v", "-x", "c++", os.devnull]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    searched = said.partition("#include <...>")[2].partition("End of search list")[0]
    return [line.strip() for line in searched.splitlines() if "c++" in line]


def _run(command: Sequence[object]) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    caches = dict.fromkeys(_ZIG_CACHES, str(ROOT / "build" / "zig"))
    subprocess.run([str(word) for word in command], check=True, env=plain | caches)
