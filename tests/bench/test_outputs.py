"""Files that cannot be written in the end are refused before anything is measured."""

import importlib.util
import os

import pytest
from click.testing import CliRunner

from bench import collectives, kernels, overlap, p2p, trainers
from bench.outputs import Written

COMMANDS = {m.__name__: m.main for m in (collectives, kernels, overlap, p2p, trainers)}


@pytest.fixture
def said(monkeypatch):
    """What a command that is not to start says of its options."""

    def run(command, *options):
        monkeypatch.setattr(command, "callback", lambda **_: pytest.fail("it started"))
        result = CliRunner().invoke(command, list(map(str, options)))
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    return run


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_without_matplotlib_nothing_is_measured(command, said, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    text = said(command, "--plot", tmp_path / "a.png")
    assert "'--plot': drawing needs matplotlib: pip install matplotlib" in text


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_where_no_file_can_be_written_nothing_is_measured(command, option, said, tmp_path):
    (tmp_path / "file").touch()
    text = said(command, option, tmp_path / "file" / "new" / "a.png")
    assert (
        f"'{option}': " in text and f"{tmp_path}/file is no folder that can be written to." in text
    )


def test_figures_have_one_of_three_formats(said, tmp_path):
    text = said(trainers.main, "--plot", tmp_path / "a.doc")
    assert "a.doc does not end in one of .png, .svg, .pdf." in text


def test_a_file_is_replaced_and_folders_are_made_later(tmp_path):
    old, new = tmp_path / "old.svg", tmp_path / "new" / "folder" / "a.pdf"
    old.touch()
    for path in (old, new):
        assert Written().convert(str(path), None, None) == path
    assert not new.parent.exists()
    assert str(Written().convert(os.devnull, None, None)) == os.devnull
