"""Settings from the environment: types, defaults, and unknown names."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

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
        ("PEER_READS", "often", "never or auto or always"),
    ],
)
def test_values_of_another_type_are_errors(name, value, expected):
    with pytest.raises(
        ValueError, match=f"PYCOMM_{name}='{value}' cannot be used: expected {expected}"
    ):
        Config.from_environment({f"PYCOMM_{name}": value})


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
