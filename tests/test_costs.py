"""The file of measured costs: kept whole, read with care."""

from __future__ import annotations

import json
import os

import pytest

from pycomm import costs
from pycomm.costs import Costs, Link, cache_file, load, save

MPI = "Some MPI 1.0"
MEASURED = Costs(
    memory=Link(0.3, 20.0, "measured here"),
    hosts=Link(20.0, 1.2, "measured there"),
    algorithms={"hosts/all_reduce/ring": Link(25.0, 1.0, "measured there")},
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pycomm"


def test_what_was_saved_is_loaded(cache_folder):
    file = save(MEASURED, "", MPI)
    assert load("", MPI) == MEASURED
    assert list(cache_folder.iterdir()) == [file] == [cache_file(MPI)]


def test_guesses_are_not_saved():
    assert set(json.loads(save(MEASURED, "", MPI).read_text())) == {
        *("format", "machine", "mpi", "memory", "hosts", "algorithms")
    }


def test_nothing_measured_is_no_warning(caplog):
    assert load("", MPI) == Costs()
    assert caplog.text == ""


def test_every_mpi_has_a_file_of_its_own():
    save(MEASURED, "", MPI)
    assert load("", "Another MPI 2.0") == Costs()


def test_a_named_file_may_come_from_another_machine(tmp_path, monkeypatch):
    file = str(tmp_path / "new" / "cluster.json")
    save(MEASURED, file, MPI)
    monkeypatch.setattr(costs, "machine", lambda: "another")
    assert load(file, MPI) == MEASURED


def test_a_named_file_that_is_missing_is_warned_about(tmp_path, caplog):
    assert load(str(tmp_path / "absent.json"), MPI) == Costs()
    assert "absent.json does not exist" in caplog.text


def content(**changes):
    return json.dumps({**json.loads(save(MEASURED, "", MPI).read_text()), **changes})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda: "", "Expecting value"),
        (lambda: "[1, 2]", "its format is not"),
        (lambda: content(format="pycomm costs 2"), "its format is not"),
        (lambda: content(mpi="Another 2.0"), "measured with Another 2.0, this is Some MPI 1.0"),
        (lambda: content(machine="elsewhere"), "measured on elsewhere, this is "),
        (lambda: content()[:-40], "Unterminated string"),
        (lambda: content(hosts={"latency_us": 3}), "is not a link"),
        (lambda: content(hosts={"latency_us": "x", "bandwidth_gbps": 1}), "could not convert"),
        (lambda: content(hosts={"latency_us": -3, "bandwidth_gbps": 1}), "above 0"),
        (lambda: content(hosts={"latency_us": 3, "bandwidth_gbps": float("nan")}), "above 0"),
        (lambda: content(hosts={"latency_us": 10**400, "bandwidth_gbps": 1}), "is not a link"),
        (lambda: "[" * 100_000, "recursion"),
        (lambda: content(hosts=5), "is not a link"),
        (lambda: content(algorithms=[1]), "is not a table of algorithms"),
    ],
)
def test_broken_and_foreign_files_are_warned_about_and_ignored(changed, expected, caplog):
    text = changed()
    cache_file(MPI).parent.mkdir(exist_ok=True)
    cache_file(MPI).write_text(text)
    assert load("", MPI) == Costs()
    assert "is not used, choosing by guesses" in caplog.text and expected in caplog.text


def test_a_save_that_fails_leaves_the_old_file(monkeypatch, cache_folder):
    file = save(MEASURED, "", MPI)
    monkeypatch.setattr(os, "replace", lambda *names: os.rename("/nonexistent", "/nonexistent"))
    with pytest.raises(OSError, match="nonexistent"):
        save(Costs(), "", MPI)
    assert load("", MPI) == MEASURED
    assert list(cache_folder.iterdir()) == [file]
