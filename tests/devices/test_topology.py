"""How ranks reach each other, and who launches, from what the GPUs say."""

from __future__ import annotations

import pytest

from pycomm.devices.topology import launchers, mode

ALL = [[True] * 4] * 4


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [("aaaa", "shared"), ("abab", "shared"), ("abcd", "peer"), ("aabc", "shared")],
)
def test_modes_by_who_shares(gpus, expected):
    assert mode(list(gpus), ALL) == expected


def test_one_that_cannot_be_reached_makes_it_staged():
    access = [list(row) for row in ALL]
    access[2][0] = False
    assert mode(list("aaaa"), access) == mode(list("abcd"), access) == "staged"


def test_one_rank_alone():
    assert mode(["a"], [[True]]) == "peer"


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [("aaaa", [0]), ("abab", [0, 1]), ("baab", [0, 1]), ("abcd", [0, 1, 2, 3])],
)
def test_the_first_rank_of_each_gpu_launches(gpus, expected):
    assert launchers(list(gpus), every_rank=False) == expected
    assert launchers(list(gpus), every_rank=True) == [0, 1, 2, 3]
