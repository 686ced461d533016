"""Which part of a whole parameter each rank has."""

from __future__ import annotations

import pytest
import torch

from pycomm.errors import ArgumentError
from pycomm.parallel.tensor import Division, take_shard
from pycomm.parallel.tensor.division import even


@pytest.mark.parametrize(
    ("count", "ranks", "counts"),
    [(6, 3, [2, 2, 2]), (7, 3, [3, 2, 2]), (8, 3, [3, 3, 2]), (1, 3, [1, 0, 0]), (5, 1, [5])],
)
def test_as_equal_as_can_be(count: int, ranks: int, counts: list[int]) -> None:
    assert even(count, ranks) == counts


def test_neurons() -> None:
    division = Division.of((7, 2), 0, 3)
    assert division.spans == (((0, 3),), ((3, 5),), ((5, 7),))
    assert division.counts() == [3, 2, 2]
    assert [division.shard_shape(rank) for rank in range(3)] == [(3, 2), (2, 2), (2, 2)]


def test_heads_of_query_key_and_value() -> None:
    division = Division.of((18, 5), 0, 2, blocks=3, unit=2)
    assert division.spans == (((0, 4), (6, 10), (12, 16)), ((4, 6), (10, 12), (16, 18)))
    shard = take_shard(torch.arange(18.0).repeat(5, 1).T, division, 1)
    assert shard[:, 0].tolist() == [4, 5, 10, 11, 16, 17]


def test_inputs() -> None:
    division = Division.of((2, 5), 1, 2)
    full = torch.arange(10.0).view(2, 5)
    shard = take_shard(full, division, 1)
    assert shard.tolist() == [[3, 4], [8, 9]]
    shard.zero_()
    assert full[1, 4] == 9


def test_a_tensor_without_memory() -> None:
    shard = take_shard(torch.empty(7, 2, device="meta"), Division.of((7, 2), 0, 3), 0)
    assert shard.is_meta and shard.shape == (3, 2)


def test_only_what_is_needed_is_read(tmp_path) -> None:
    file = tmp_path / "weights"
    with file.open("wb") as hole:
        hole.truncate(1 << 40)  # bytes that no machine has in memory
    full = torch.from_file(str(file), shared=True, size=1 << 38).view(-1, 1 << 10)
    division = Division.of(full.shape, 0, 1 << 20)
    assert take_shard(full, division, 3).shape == (256, 1024)


@pytest.mark.parametrize(
    ("shape", "arguments", "match"),
    [
        ((3, 2), {}, "1 × 3 units of 1, of which each rank needs one: use at most 3 ranks"),
        ((12, 2), {"blocks": 3, "unit": 2}, "3 × 2 units of 2, .* use at most 2 ranks"),
        ((13, 2), {"blocks": 3}, "cannot be divided over 4 ranks"),
        ((18, 2), {"unit": 4}, r"1 × 4.5 units of 4"),
    ],
)
def test_what_cannot_be_divided(shape, arguments, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Division.of(shape, 0, 4, **arguments)


def test_a_part_of_something_else() -> None:
    with pytest.raises(ArgumentError, match=r"shape \(6, 2\) is not the whole one, .* \(7, 2\)"):
        take_shard(torch.zeros(6, 2), Division.of((7, 2), 0, 3), 0)
