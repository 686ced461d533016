"""Text as a task: files → characters → symbols → windows, and the bigram entropy to beat."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pycomm.errors import ArgumentError
from pycomm.workloads.task import Defaults, Task

CONTEXT = 64
"""How many characters a model sees before the one it predicts last."""
HELD_OUT = 0.05
"""The share of a text, at its end, that is not trained on."""
RARE = 100_000
"""A character that is rarer than one in so many becomes the unknown symbol."""
UNKNOWN = 0
"""The symbol of rare characters."""
SUFFIXES = tuple(".txt .md .rst .tex .py .c .h .cpp .cu .rs .go .java .js .ts .html .sh".split())
"""The files of a folder that count as text."""

_DEFAULTS = Defaults(model="gpt", epochs=None, steps=1000, batch_size=32, lr=2e-3)
# Parts of the standard library that distributions leave out or build for one machine.
_NOT_EVERYWHERE = frozenset(
    "site-packages dist-packages test tests idlelib tkinter turtledemo lib2to3 distutils "
    "ensurepip pydoc_data __phello__".split()
)


class Windows(Dataset[tuple[Tensor, ...]]):
    """Windows of a text, side by side: (context symbols, the symbol after each of them).

    Args:
        symbols: (n,) of any integer dtype; kept, not copied.
        context: the length of a window; both tensors of a sample are (context,) int64.
    """

    def __init__(self, symbols: Tensor, context: int = CONTEXT):
        self.symbols = symbols
        self.context = context

    def __len__(self) -> int:
        return max(0, (len(self.symbols) - 1) // self.context)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index % len(self) * self.context
        window = self.symbols[start : start + self.context + 1].long()
        return window[:-1], window[1:]


@dataclass(frozen=True)
class Vocabulary:
    """The characters that have a symbol of their own: `characters[i]` is symbol i + 1."""

    characters: str

    def __len__(self) -> int:
        return len(self.characters) + 1

    @classmethod
    def of(cls, text: str, rare: int = RARE) -> Vocabulary:
        """Return the vocabulary of a text, in the order of code points."""
        points, counts = np.unique(_code_points(text), return_counts=True)
        kept = points[counts * rare >= len(text)]
        return cls("".join(map(chr, kept)))

    def encode(self, text: str) -> Tensor:
        """Return the symbols of a text, uint8 where they fit, else int32."""
        dtype = np.uint8 if len(self) <= 256 else np.int32
        table = np.full(0x110000, UNKNOWN, dtype)
        table[_code_points(self.characters)] = np.arange(1, len(self), dtype=dtype)
        return torch.from_numpy(table[_code_points(text)])


def bigram_entropy(symbols: Tensor, classes: int) -> float:
    """Return the conditional entropy H(next | current) of a text's own bigrams, in nats.

    With n(a, b) the number of places where b follows a in the *whole* text (held-out part
    included) and n(a) = Σ_b n(a, b), it is −Σ n(a, b)/N · ln(n(a, b)/n(a)): the mean loss over
    that text of the best predictor there can be that sees one character only. It has seen the
    text that it is judged on; so this is a harder target than a bigram model fitted to the
    training part.
    """
    flat = symbols.numpy().astype(np.int64)
    pairs, counts = np.unique(flat[:-1] * classes + flat[1:], return_counts=True)
    given = np.bincount(flat[:-1], minlength=classes)[pairs // classes]
    return float((counts * np.log(given / counts)).sum() / counts.sum())


def text_task(name: str, text: str, context: int = CONTEXT) -> Task:
    """Return the task of predicting each next character of a text; its end is held out.

    Raises:
        ArgumentError: the text is too short for one held-out window.
    """
    vocabulary = Vocabulary.of(text)
    symbols = vocabulary.encode(text)
    cut = len(symbols) - int(len(symbols) * HELD_OUT)
    train, test = Windows(symbols[:cut], context), Windows(symbols[cut:], context)
    if not len(test):
        least = int((context + 1) / HELD_OUT)
        raise ArgumentError(
            f"{name} has {len(text)} characters; at least {least} are needed, since the last "
            f"{HELD_OUT:.0%} are held out in windows of {context}"
        )
    return Task(
        name=name,
        kind="tokens",
        train=train,
        test=test,
        input_shape=(context,),
        classes=len(vocabulary),
        defaults=_DEFAULTS,
        bigram_entropy=bigram_entropy(symbols, len(vocabulary)),
    )


def standard_library() -> str:
    """Return the source of Python's standard library; the same on every host of one version."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _files(root, (".py",), _NOT_EVERYWHERE)
    return read_all(f for f in files if not f.name.startswith("_sysconfigdata"))


def read_folder(folder: Path) -> str:
    """Return the text of all text files in a folder and below, in the order of their paths.

    Raises:
        ArgumentError: there is none.
    """
    files = _files(folder, SUFFIXES)
    if not files:
        raise ArgumentError(
            f"the folder {str(folder)!r} holds no text: files ending in {' '.join(SUFFIXES)} count"
        )
    return read_all(files)


def read_all(files: Iterable[Path]) -> str:
    """Return the contents of files one after the other; bytes that are not UTF-8 become U+FFFD."""
    try:
        return "".join(f.read_text(encoding="utf-8", errors="replace") for f in files)
    except OSError as error:
        raise ArgumentError(f"{error.filename} cannot be read: {error.strerror}") from error


def _files(root: Path, suffixes: tuple[str, ...], skip: frozenset[str] = frozenset()) -> list[Path]:
    """Return the files below `root`, hidden ones left out, in an order that hosts agree on."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip and not f.startswith((".", "__py"))]
        found += [Path(folder, f) for f in files if not f.startswith(".")]
    return sorted(f for f in found if f.suffix in suffixes and f.is_file())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
