"""Settings from the environment: types, defaults, and unknown names."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import pytest

import pycomm
from pycomm.config import Config


def test_defaults_and_values_of_every_type():
    assert Config.from_environment({}) == Config()
    given = {"PYCOMM_TIMEOUT": "1.5", "PYCOMM_SHARED_MEMORY": "0", "PYCOMM_ORDER": "rank"}
    config = Config.from_environment({**given, "PATH": "/bin"})
    assert (config.timeout, config.shared_memory, config.order) == (1.5, False, "rank")


def test_every_setting_has_a_sentence():
    for setting in dataclasses.fields(Config):
        assert setting.metadata["help"].endswith("."), setting.name


def test_unknown_names_are_warned_about_with_the_nearest(caplog):
    Config.from_environment({"PYCOMM_TIMEOT": "3"})
    assert "PYCOMM_TIMEOT is not a setting: did you mean PYCOMM_TIMEOUT?" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TIMEOUT", "soon", "float"),
        ("SHARED_MEMORY", "maybe", "0 or 1"),
        ("MAX_MESSAGE_BYTES", "1.5", "int"),
        ("TIMEOUT", "0", "float above 0"),
        ("TIMEOUT", "-3", "float above 0"),
        ("TIMEOUT", "nan", "float above 0"),
        ("MAX_MESSAGE_BYTES", "0", "int above 0"),
        ("MAX_MESSAGE_BYTES", "-1", "int above 0"),
        ("PEER_READS", "often", "never or auto or always"),
    ],
)
def test_values_of_another_type_or_too_small_are_errors(name, value, expected):
    with pytest.raises(
        ValueError, match=f"PYCOMM_{name}='{value}' cannot be used: expected {expected}"
    ):
        Config.from_environment({f"PYCOMM_{name}": value})


@pytest.mark.parametrize("timeout", [True, float("nan"), 0, -1.5, "20", [1]], ids=str)
def test_timeouts_that_are_no_positive_number_are_errors(timeout):
    for join in (pycomm.init, lambda seconds: pycomm.Communicator.from_mpi(None, seconds)):
        with pytest.raises(pycomm.ArgumentError, match=re.escape(f"timeout={timeout!r} is not")):
            join(timeout)


@pytest.mark.parametrize(
    ("set_by_user", "expected"), [({}, "send,inplace"), ({"OMPI_MCA_btl_tcp_flags": "1"}, "1")]
)
def test_open_mpi_sends_both_ways_at_once_unless_told_otherwise(set_by_user, expected):
    program = """
import os
from pycomm.transport.mpi import import_mpi
import_mpi()
print(os.environ["OMPI_MCA_btl_tcp_flags"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMPI_MCA_btl_tcp_flags"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **set_by_user},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == expected, result.stderr
