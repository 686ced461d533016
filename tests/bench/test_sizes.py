"""How sizes and names are written on the command line."""

import pytest

from bench.operations import COLLECTIVES, fitting_count
from bench.sizes import parse_sizes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("4:64:4", [4, 16, 64]),
        ("4:100:×5", [4, 20, 100]),
        ("4:50:x5", [4, 20, 50]),
        ("1K:4K:2", [1024, 2048, 4096]),
        ("25M", [25 << 20]),
        ("1M,4,32KiB", [4, 32 << 10, 1 << 20]),
        ("8:8:2", [8]),
    ],
)
def test_sizes(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "four", "4:1", "4:100:1", "0:4:2", "4:8:2:2", "4:8:0.5"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|expected|float"):
        parse_sizes(text)


def test_counts_fit_into_equal_chunks():
    assert fitting_count(COLLECTIVES["all_reduce"], 4, 4, 3) == 1
    assert fitting_count(COLLECTIVES["all_gather"], 4, 4, 3) == 3
    assert fitting_count(COLLECTIVES["reduce_scatter"], 100, 4, 3) == 24
    assert fitting_count(COLLECTIVES["all_to_all"], 100, 4, 3) == 24
    assert fitting_count(COLLECTIVES["broadcast"], 2, 8, 3) == 1
    assert fitting_count(COLLECTIVES["barrier"], 100, 4, 3) == 0
