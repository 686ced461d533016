"""Compiles every kernel by nvcc, warnings as errors; python -m tests.cuda.check."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pycomm.kernels.launcher import TEMPLATES, expression_of, kernels_of

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "cuda-check"
ARCHITECTURES = (80, 90, 100)
# ptxas only has to accept the code here: -O1 takes a third of the time.
FLAGS = (
    "-std=c++17 --fmad=false -Werror all-warnings -Xptxas -O1,-Werror -fatbin "
    "-Xcompiler -Wall,-Wextra,-Werror,-Wno-unknown-pragmas"
).split()
AT_A_TIME = 30
"""Kernels of one run of nvcc; several run side by side."""


def main() -> int:
    """Compile what has changed since it was last compiled; return the exit code."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda-check: there is no nvcc on PATH, so nothing was compiled")
        return 0
    start = time.monotonic()
    jobs = [(file, part) for file in sorted(_files()) for part in _parts(file)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        failures = [out for out in pool.map(lambda job: _compile(nvcc, *job), jobs) if out]
    print("\n".join(failures), file=sys.stderr, end="")
    kernels = sum(len(part) for _, part in jobs)
    targets = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
    seconds = time.monotonic() - start
    print(f"cuda-check: {kernels} kernels for {targets}: {len(failures)} failures, {seconds:.0f} s")
    return bool(failures)


def _files() -> set[str]:
    """Return all kernel files; each must have a template."""
    found = {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    named = {template.file for template in TEMPLATES.values()}
    if found != named:
        raise SystemExit(f"csrc/cuda has {found}, but launcher.py has templates of {named}")
    return found


def _parts(file: str) -> list[list[str]]:
    kernels = kernels_of(file)
    return [kernels[i : i + AT_A_TIME] for i in range(0, len(kernels), AT_A_TIME)]


def _compile(nvcc: str, file: str, kernels: list[str]) -> str:
    """Return what nvcc has against some kernels of a file: nothing, if all is well."""
    addresses = "".join(
        f"  reinterpret_cast<const void*>(&{expression_of(kernel)}),\n" for kernel in kernels
    )
    source = f'#include "cuda/{file}"\nextern const void* const kernels[];\n'
    source += f"const void* const kernels[] = {{\n{addresses}}};\n"
    done = BUILD / f"{Path(file).stem}-{_digest(file, source)}.ok"
    if done.exists():
        return ""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = done.with_suffix(".cu")
    program.write_text(source)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [nvcc, *FLAGS, *targets, f"-I{ROOT / 'csrc'}", "-o", program.with_suffix(".fatbin")]
    run = subprocess.run([*command, program], text=True, capture_output=True)
    if run.returncode:
        return f"{file}, from {kernels[0]} on:\n{run.stdout}{run.stderr}\n"
    done.touch()
    return ""


def _digest(file: str, source: str) -> str:
    csrc = ROOT / "csrc"
    files = [csrc / "cuda" / file, *sorted(csrc.glob("*.h")), *sorted(csrc.glob("cuda/*.h"))]
    text = "\n".join([source, *FLAGS, str(ARCHITECTURES), *map(Path.read_text, files)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
