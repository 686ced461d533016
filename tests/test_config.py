"""Settings from the environment: types, defaults, and unknown names."""

from __future__ import annotations

import dataclasses

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
    ],
)
def test_values_of_another_type_are_errors(name, value, expected):
    with pytest.raises(
        ValueError, match=f"PYCOMM_{name}='{value}' cannot be used: expected {expected}"
    ):
        Config.from_environment({f"PYCOMM_{name}": value})
