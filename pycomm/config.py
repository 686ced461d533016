"""Every PYCOMM_* environment variable, in one class."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from pycomm.errors import ArgumentError

_logger = logging.getLogger("pycomm")


def checked_timeout(value: Any) -> float:
    """Return `value` if it is a positive number of seconds, or raise ArgumentError."""
    if not isinstance(value, Real) or isinstance(value, bool) or not float(value) > 0:
        raise ArgumentError(f"timeout={value!r} is not a positive number of seconds")
    return float(value)


def _option(
    default: Any, help: str, choices: tuple[str, ...] = (), above: float = -math.inf
) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "above": above})


@dataclass(frozen=True)
class Config:
    """The settings that come from the environment; function arguments go before them."""

    timeout: float = _option(
        300.0, "Seconds without progress after which an operation fails.", above=0
    )
    shared_memory: bool = _option(True, "Use shared memory between ranks of one host.")
    order: str = _option("", "'rank' adds in rank order between hosts, too; rank 0's counts.")
    algorithm: str = _option(
        "", "'ring' is used wherever it exists, '^ring,pairwise' are not; rank 0's counts."
    )
    tuning: str = _option("", "The file of measured costs, instead of the one in ~/.cache/pycomm.")
    peer_reads: str = _option(
        "auto",
        "Read large ordinary arrays of ranks on this host without their help: 'auto' from huge "
        "pages, where that is faster.",
        ("never", "auto", "always"),
    )
    max_message_bytes: int = _option(
        2**30 - 1, "Larger MPI messages are cut into such pieces.", above=0
    )
    checksums: int = _option(
        0, "Data parallel: compare the replicas' parameters every so many steps; 0 does not."
    )
    flight: str = _option(
        "", "A folder for what each rank did last, written on errors; else in the temporary one."
    )
    trace: str = _option("", "A folder to write each rank's Perfetto trace to, at exit.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Config:
        """Read PYCOMM_<NAME> for every field.

        Unknown PYCOMM_ variables are warned about, with the nearest name.

        Raises:
            ArgumentError: a value is not of the variable's type, or too small.
        """
        values = {}
        for name in given(environment):
            if option := SETTINGS.get(name):
                values[option.name] = _parse(name, environment[name], option)
            else:
                _logger.warning("%s", unknown(name))
        return cls(**values)


SETTINGS = {f"PYCOMM_{f.name.upper()}": f for f in dataclasses.fields(Config)}
"""The fields of Config by the names of their environment variables."""


def given(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the variables that are set and look like settings of pycomm."""
    return sorted(name for name in environment if name.startswith("PYCOMM_"))


def unknown(name: str) -> str:
    """Return the sentence about a variable that is no setting, with the nearest that is."""
    near = difflib.get_close_matches(name, SETTINGS, n=1) or sorted(SETTINGS)
    return f"{name} is not a setting: did you mean {' or '.join(near)}?"


def _parse(name: str, text: str, option: dataclasses.Field) -> Any:
    kind: type = type(option.default)
    choices, above = option.metadata["choices"], option.metadata["above"]
    try:
        if kind is bool:
            return {"0": False, "1": True, "false": False, "true": True}[text.lower()]
        if choices:
            return choices[choices.index(text)]
        if kind is str or kind(text) > above:
            return kind(text)
    except (KeyError, ValueError):
        pass
    expected = " or ".join(choices) or ("0 or 1" if kind is bool else kind.__name__)
    more = f" above {above:g}" if above > -math.inf else ""
    raise ArgumentError(f"{name}={text!r} cannot be used: expected {expected}{more}")
