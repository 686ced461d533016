"""The house's own rules: layers, docstrings, light imports, short files."""

import ast
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
