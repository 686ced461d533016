"""`python -m pycomm trace` draws schedules, and says what they cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from pycomm.cli import main
from pycomm.parallel.schedules.picture import draw
from pycomm.parallel.schedules.registry import SCHEDULES


def traced(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["trace", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_one_forward_one_backward() -> None:
    assert traced("--schedule", "1f1b", "--stages", "3", "--microbatches", "4") == (
        "clock   0  1  2  3  4  5  6  7  8  9  10 11\n"
        "stage 0 F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3\n"
        "stage 1 .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .\n"
        "stage 2 .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .\n"
        "\n"
        "F forward, B backward, W gradients of weights, . idle; the number is the microbatch\n"
        "idle: 33.3% of the time if backward takes twice as long as forward;\n"
        "  in 1f1b and gpipe (p - 1) / (m + p - 1) = 33.3%\n"
        "activations kept at once by each stage: of 3, 2, 1 microbatches\n"
    )


def test_interleaved_with_stages_of_each_rank() -> None:
    text = traced("--schedule", "interleaved", "--stages", "2", "--stages-per-rank", "3")
    assert draw(SCHEDULES["interleaved"].build(2, 8, 3)) in text
    assert "rank r has stage 0 + r in a, 2 + r in b, 4 + r in c\n" in text
    assert "idle: 4.0%" in text


def test_zero_bubble_beside_the_formula() -> None:
    text = traced("--schedule", "zb-h1")
    assert "idle: 11.1%" in text and "= 27.3%" in text and "of 4, 4, 4, 4 microb" in text


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_help_teaches_every_schedule(name: str) -> None:
    assert f"\n    {name} " in traced("--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages-per-rank", "2"], "'1f1b' has one stage a rank, not stages_per_rank=2"),
        (["--schedule", "zigzag"], "'zigzag' is not one of"),
        (["--stages", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_drawn(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["trace", *arguments])
    assert result.exit_code != 0
    assert said in result.output


def test_it_needs_no_torch() -> None:
    code = "import sys; from pycomm.cli import main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
