"""Every PYCOMM_* environment variable, in one class."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pycomm.errors import ArgumentError

_logger = logging.getLogger("pycomm")


def _option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The settings that come from the environment; function arguments go before them."""

    timeout: float = _option(300.0, "Seconds without progress after which an operation fails.")
    shared_memory: bool = _option(True, "Use shared memory between ranks of one host.")
    peer_reads: str = _option(
        "auto",
        "Read large ordinary arrays of ranks on this host without their help: 'auto' from huge "
        "pages, where that is faster.",
        ("never", "auto", "always"),
    )
    order: str = _option("", "'rank' adds in rank order between hosts, too.")
    max_message_bytes: int = _option(2**30 - 1, "Larger MPI messages are cut into such pieces.")
    trace: str = _option("", "A folder to write each rank's Perfetto trace to, at exit.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Config:
        """Read PYCOMM_<NAME> for every field.

        Unknown PYCOMM_ variables are warned about, with the nearest name.

        Raises:
            ArgumentError: a value is not of the variable's type.
        """
        known = {f"PYCOMM_{f.name.upper()}": f for f in dataclasses.fields(cls)}
        values = {}
        for name in sorted(n for n in environment if n.startswith("PYCOMM_")):
            if name in known:
                option = known[name]
                values[option.name] = _parse(name, environment[name], option)
            else:
                near = difflib.get_close_matches(name, known, n=1) or sorted(known)
                _logger.warning("%s is not a setting: did you mean %s?", name, " or ".join(near))
        return cls(**values)


def _parse(name: str, text: str, option: dataclasses.Field) -> Any:
    kind: type = type(option.default)
    choices = option.metadata["choices"]
    try:
        if kind is bool:
            return {"0": False, "1": True, "false": False, "true": True}[text.lower()]
        return choices[choices.index(text)] if choices else kind(text)
    except (KeyError, ValueError):
        expected = " or ".join(choices) or ("0 or 1" if kind is bool else kind.__name__)
        raise ArgumentError(f"{name}={text!r} cannot be used: expected {expected}") from None
