"""The runs of `make bench`: all operations, every peer, on 2 and 4 ranks; JSON, text and plots."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from bench.environment import ROOT, machine, results_folder

OWN = "pycomm,pycomm-symmetric,mpi4py"
OPEN_MPI = ("--bind-to", "none", "--oversubscribe")
XHC = (*OPEN_MPI, "--mca", "coll_xhc_priority", "100")
PARTS = ("--parallel", "model")
_LIMIT_S = 7200


@dataclass(frozen=True)
class Launch:
    """One mpirun: a script of bench/ in an environment; `name` is that of its files.

    It takes the options that all share, or none of them.
    """

    name: str
    environment: Path
    flags: tuple[str, ...]
    script: str
    options: tuple[str, ...] = ()
    takes_options: bool = True

    def command(self, ranks: int, folder: Path, options: Sequence[str]) -> list[str]:
        """Return the command line."""
        binaries = self.environment / "bin"
        launcher = [str(binaries / "mpirun"), *self.flags, "-np", str(ranks)]
        program = [str(binaries / "python"), f"bench/{self.script}", *self.options]
        program += options if self.takes_options else []
        return [*launcher, *program, "--json", str(folder / f"{self.name}-{ranks}.json")]


def launches(open_mpi: Path, mpich: Path) -> list[Launch]:
    """Return those whose environments exist; of each script the first has most of the peers."""
    collectives, messages = ("collectives.py", ("--op", "all")), ("p2p.py", ())
    own = ("--op", "all", "--impl", OWN)
    found = [
        Launch("collectives", open_mpi, OPEN_MPI, *collectives),
        Launch("collectives-xhc", open_mpi, XHC, "collectives.py", own),
        Launch("collectives-mpich", mpich, (), "collectives.py", own),
        Launch("p2p", open_mpi, OPEN_MPI, *messages),
        Launch("p2p-mpich", mpich, (), "p2p.py", ("--impl", "pycomm,mpi4py")),
        Launch("overlap", open_mpi, OPEN_MPI, "overlap.py"),
        Launch("trainers", open_mpi, OPEN_MPI, "trainers.py", takes_options=False),
        Launch("pipelines", open_mpi, OPEN_MPI, "trainers.py", PARTS, takes_options=False),
    ]
    return [launch for launch in found if (launch.environment / "bin" / "mpirun").exists()]


def run(command: list[str], text: Path) -> int:
    """Run a command, show what it prints and write it to a file; return its exit code."""
    print("$", *command, flush=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    limit = threading.Timer(_LIMIT_S, process.terminate)
    limit.start()
    with process, text.open("w") as file:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
    limit.cancel()
    return process.returncode


def results() -> Path:
    """Return the folder for this day and machine."""
    return results_folder(f"{machine().split(',')[0]} {os.cpu_count()} cores")


@click.command(context_settings={"show_default": True, "ignore_unknown_options": True})
@click.option("--ranks", default="2,4", help="Numbers of ranks.")
@click.option("--open-mpi", type=click.Path(path_type=Path), default=ROOT / ".venv")
@click.option("--mpich", type=click.Path(path_type=Path), default=ROOT / ".venv-mpich")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for results.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(ranks: str, open_mpi: Path, mpich: Path, out: Path | None, options: tuple) -> None:
    """Run collectives.py, p2p.py, overlap.py and trainers.py of bench/ with every peer.

    OPTIONS go to the first three.
    """
    chosen = launches(open_mpi, mpich)
    if not chosen:
        raise click.UsageError(f"there is no mpirun in {open_mpi} or {mpich}: run `make setup`")
    folder = out or results()
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for number in map(int, ranks.split(",")):
        for launch in chosen:
            name = f"{launch.name}-{number}"
            if run(launch.command(number, folder, options), folder / f"{name}.txt"):
                failed.append(name)
        for script in ("collectives", "p2p"):
            files = [folder / f"{script}{tail}-{number}.json" for tail in ("", "-xhc", "-mpich")]
            found = [str(file) for file in files if file.exists()]
            plot = [sys.executable, "bench/plot.py", *found]
            plot += ["--out", str(folder / f"{script}-{number}.png")]
            run(plot, folder / f"{script}-{number}-ahead.txt") if found else None
    print(f"results: {folder}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
