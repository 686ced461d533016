"""Checkpoints: a folder that at every moment holds one complete state of all ranks.

    DIR/latest                 the name of the complete save
    DIR/step-00000012/         one save:
        part-0.pt part-1.pt …    a rank's tensors and optimizer state, by full names
        leftovers-0.pt …         what compression has left for later on a rank, if anything
        random.pt                the random generators of every rank
        index.json               where each tensor lies, its shape and dtype; the progress

A save fills a new folder, every file by way of a temporary one, and every rank says that its part
is on disk; only then does `latest` change, by a rename, and the oldest saves go. Whatever is killed
when, `latest` names a save that is complete. The folder must be visible to all ranks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch.utils._pytree import tree_map

from pycomm.errors import ArgumentError, CommError
from pycomm.parallel.replicate import gather_from_every_rank
from pycomm.trainers.named_state import on_host

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

FORMAT = 1
_SAVE = re.compile(r"step-\d{8,}(\.\d+)?")
Tensors = dict[str, torch.Tensor]


def save(
    directory: str | Path,
    comm: Communicator,
    part: dict[str, Any] | None,
    random: dict[str, Any],
    progress: dict[str, Any],
    keep: int = 1,
    leftovers: Mapping[str, Any] | None = None,
    optimizer: str | None = None,
) -> None:
    """Write a checkpoint; every rank must call this, and returns when it is complete on disk.

    Args:
        directory: made if need be.
        comm: the ranks.
        part: {"model": tensors by full name, "optimizer": state by name}, or None on a rank that
            has nothing of its own to write.
        random: this rank's random generators.
        progress: plain values; that of rank 0 is written.
        keep: how many saves stay, this one included; older ones go.
        leftovers: what compression has left on this rank, by full name.
        optimizer: its kind; None on a rank that has none.

    Raises:
        CommError: a rank could not write; raised on every rank, what was there before is kept.
    """
    root = Path(directory)
    folder = _together(comm, root, lambda: _new_folder(root, progress["step"]), only_rank_0=True)[0]
    file = f"part-{comm.rank}.pt"
    entries = _together(comm, root, lambda: _write_part(root / folder / file, part))
    left = f"leftovers-{comm.rank}.pt"
    lefts = _together(comm, root, lambda: _write_leftovers(root / folder / left, leftovers))
    randoms = comm.all_gather_object(random)
    kinds = comm.all_gather_object(optimizer)

    def complete() -> None:
        write_atomically(root / folder / "random.pt", lambda f: torch.save(randoms, f))
        names = {name: entry for part_entries in entries for name, entry in part_entries.items()}
        index = {"format": FORMAT, "ranks": comm.size, "progress": progress, "tensors": names}
        index["leftovers"] = [file for file in lefts if file is not None]
        index["optimizer"] = next(filter(None, kinds), None)
        text = json.dumps(index, indent=1).encode()
        write_atomically(root / folder / "index.json", lambda f: f.write(text))
        write_atomically(root / "latest", lambda f: f.write(folder.encode()))
        _remove_old(root, folder, keep)

    _together(comm, root, complete, only_rank_0=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file such that `path` is, after any crash, what it was or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def exists(directory: str | Path) -> bool:
    """Say whether `directory` holds a complete checkpoint.

    Raises:
        ArgumentError: it is no path, or cannot be read.
    """
    check_path("checkpoint", directory)
    try:
        return (Path(directory) / "latest").is_file()
    except OSError as error:
        raise ArgumentError(f"checkpoint={str(directory)!r} cannot be read: {error}") from error


def check_path(name: str, path: Any) -> None:
    """Return if an argument is a path, or None.

    Raises:
        ArgumentError: it is not.
    """
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"{name}={path!r} must be a path")


class Checkpoint:
    """A checkpoint, to be read; tensors stay on disk until `read`.

    Raises:
        ArgumentError: `directory` holds no checkpoint, or one of another format.
    """

    def __init__(self, directory: str | Path):
        root = Path(directory)
        if not exists(root):
            raise ArgumentError(
                f"{str(root)!r} holds no checkpoint (no file 'latest'): "
                f"check the path, or train with checkpoint={str(root)!r} first"
            )
        self.folder = root
        with self.reading():
            self.folder = root / (root / "latest").read_text().strip()
            self.index = json.loads((self.folder / "index.json").read_text())
            found = self.index["format"]
            self.progress: dict[str, Any] = self.index["progress"]
        if found != FORMAT:
            raise ArgumentError(
                f"checkpoint {str(self.folder)!r} has format {found}, "
                f"this version of pycomm reads {FORMAT}"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Say of what goes wrong inside that the checkpoint is damaged."""
        try:
            yield
        except CommError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArgumentError(
                f"checkpoint {str(self.folder)!r} is damaged ({type(error).__name__}: {error}): "
                "name another folder, or write an older save's name into its file 'latest'"
            ) from error

    def check(self, expected: dict[str, tuple[str, list[int]]]) -> None:
        """Return if the checkpoint is of a model with these tensors.

        Args:
            expected: (dtype, shape) of every parameter and buffer of the whole model by full name.

        Raises:
            ArgumentError: names the first parameter that is missing, unexpected or different.
        """
        saved = {n: (e["dtype"], e["shape"]) for n, e in self.index["tensors"].items()}
        for name, kind in expected.items():
            if name not in saved:
                self._fail(f"it has no {name!r}")
            if saved[name] != kind:
                self._fail(f"{name!r} is {saved[name]} there and {kind} in this model")
        for name in saved:
            if name not in expected:
                self._fail(f"it has {name!r}, which this model has not")

    def check_optimizer(self, kind: str | None) -> None:
        """Return if the state is that of this kind of optimizer, as far as is known.

        Raises:
            ArgumentError: it is that of another one.
        """
        saved = self.index.get("optimizer")
        if kind and saved and kind != saved:
            raise ArgumentError(
                f"checkpoint {str(self.folder)!r} has the state of {saved}, this trainer has "
                f"{kind}: train with the same optimizer, or load the model alone"
            )

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Return {"model": …, "optimizer": …} with the tensors called `names`, from any parts.

        Of the files only what is wanted is read; of the optimizer that is the state of parameters
        called `names`, and the settings of all groups.
        """
        wanted = set(names)
        files = sorted({self.index["tensors"][name]["file"] for name in wanted})
        model: Tensors = {}
        optimizer: dict[str, Any] = {"state": {}, "groups": []}
        for part in (self._torch_load(file, mmap=True) for file in files):
            model |= {n: t.clone() for n, t in part["model"].items() if n in wanted}
            states = part["optimizer"]["state"].items()
            optimizer["state"] |= {n: tree_map(_own, state) for n, state in states if n in wanted}
            optimizer["groups"] += tree_map(_own, part["optimizer"]["groups"])
        return {"model": model, "optimizer": optimizer}

    def random(self, rank: int) -> dict[str, Any] | None:
        """Return the random generators of `rank`, or None where fewer ranks had saved."""
        states = self._torch_load("random.pt")
        return states[rank] if rank < len(states) else None

    def leftovers(self) -> list[dict[str, Any]]:
        """Return what compression had left, by full name, on each rank that had some.

        Tensors are read from disk as they are used.
        """
        return [self._torch_load(file, mmap=True) for file in self.index.get("leftovers", [])]

    def _torch_load(self, file: str, *, mmap: bool = False) -> Any:
        path = self.folder / file
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:
            raise ArgumentError(f"{str(self.folder / file)!r} cannot be read: {error}") from error

    def _fail(self, why: str) -> None:
        raise ArgumentError(
            f"checkpoint {str(self.folder)!r} is of another model: {why}; "
            f"build the model that was saved, or name another folder"
        )


def _own(x: Any) -> Any:
    """Return a tensor in memory of its own, not of the file; anything else as it is."""
    return x.clone() if isinstance(x, torch.Tensor) else x


def _together(
    comm: Communicator, root: Path, action: Callable[[], Any], *, only_rank_0: bool = False
) -> list[Any]:
    """Run `action`, on every rank or on rank 0 only, and return all results, or raise on all."""

    def write() -> Any:
        try:
            return action() if comm.rank == 0 or not only_rank_0 else None
        except OSError as error:
            raise CommError(
                f"the checkpoint in {str(root)!r} cannot be written: {error}; "
                f"what it held before is unchanged"
            ) from error

    return gather_from_every_rank(comm, write, f"writing the checkpoint in {str(root)!r}")


def _new_folder(root: Path, step: int) -> str:
    root.mkdir(parents=True, exist_ok=True)
    name, again = f"step-{step:08d}", 0
    while (root / name).exists():  # never write into a folder that `latest` may name
        again += 1
        name = f"step-{step:08d}.{again}"
    (root / name).mkdir()
    _sync_folder(root)
    return name


def _write_part(path: Path, part: dict[str, Any] | None) -> dict[str, Any]:
    if part is None:
        return {}
    write_atomically(path, lambda file: torch.save(on_host(part), file))
    return {
        name: {"file": path.name, "dtype": str(t.dtype), "shape": list(t.shape)}
        for name, t in part["model"].items()
    }


def _write_leftovers(path: Path, leftovers: Mapping[str, Any] | None) -> str | None:
    if not leftovers:
        return None
    write_atomically(path, lambda file: torch.save(on_host(leftovers), file))
    return path.name


def _remove_old(root: Path, newest: str, keep: int) -> None:
    saves = [f.name for f in root.iterdir() if _SAVE.fullmatch(f.name) and f.name != newest]
    saves.sort(key=lambda name: [int(part) for part in name.removeprefix("step-").split(".")])
    for name in saves[: max(0, len(saves) - keep + 1)]:
        shutil.rmtree(root / name, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
