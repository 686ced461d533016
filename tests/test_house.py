"""The house's own rules: layers, docstrings, light imports, short files, files that docs name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PACKAGE = sorted((ROOT / "pycomm").rglob("*.py"))
SOURCES = [
    file
    for folder in ("pycomm", "csrc", "bench", "tests")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in {".py", ".h", ".cpp", ".cu"}
]
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bench/README.md"]
NAMED = re.compile(r"`([\w./-]+\.(?:py|cpp|h|cu|md))`|\]\((?!https?:)([^)#]+)")
"""A file in backticks, or the target of a link."""
YOURS = {"example.py"}
"""What the reader is to write."""


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="import-linter needs Python 3.11")
def test_layers_import_downward_only():
    result = run(BIN / "lint-imports", "--no-logo", "--no-cache")
    assert result.returncode == 0, result.stdout


def test_every_public_name_has_a_docstring():
    result = run(BIN / "interrogate", "pycomm", "-vv")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("heavy", ["torch", "cupy", "numba"])
def test_importing_pycomm_stays_light(heavy):
    result = run(sys.executable, "-c", f"import sys, pycomm; sys.exit({heavy!r} in sys.modules)")
    assert result.returncode == 0, f"import pycomm imports {heavy}\n{result.stdout}"


def from_the_front_door(file: Path) -> list[str]:
    """Return what `file` takes from `pycomm` itself, apart from its modules and the extension."""
    taken = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module, node.level) == ("pycomm", 0):
            taken += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            taken += ["*" for alias in node.names if alias.name == "pycomm"]
    modules = {"_native"} | {p.stem for p in (ROOT / "pycomm").iterdir()}
    return [t for t in taken if t not in modules]


@pytest.mark.parametrize("file", PACKAGE, ids=name)
def test_inside_the_package_names_come_from_where_they_are_defined(file):
    assert from_the_front_door(file) == []


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_files_are_short(file):
    lines = len(file.read_text().splitlines())
    assert lines <= 350, f"{name(file)} has {lines} lines: it is two concepts"


def is_there(named: str, document: Path) -> bool:
    """Say whether a file exists: by its path from some folder, or, without one, by its name."""
    folders = [ROOT, document.parent, ROOT / "pycomm", ROOT / "csrc"]
    known = {file.name for file in SOURCES}
    return named in known | YOURS or any((folder / named).exists() for folder in folders)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_name_files_that_exist(document):
    found = [a or b for a, b in NAMED.findall(document.read_text())]
    assert [named for named in found if not is_there(named, document)] == []
