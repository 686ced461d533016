"""The plan of shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycomm.kernels.update import NORM_BLOCK
from pycomm.parallel.shards import BLOCK, Piece, plan_shards


def test_cuts_at_blocks() -> None:
    assert plan_shards([3 * BLOCK + 5, 10], 2) == [
        [Piece(0, 0, 2 * BLOCK)],
        [Piece(0, 2 * BLOCK, 3 * BLOCK + 5), Piece(1, 0, 10)],
    ]


def test_a_block_is_one_partial_sum_of_squares() -> None:
    assert BLOCK == NORM_BLOCK


@given(
    st.lists(st.integers(0, 3 * BLOCK), max_size=12) | st.lists(st.integers(0, 9), max_size=12),
    st.integers(1, 5),
)
def test_every_element_has_one_owner_and_shares_differ_by_a_block(counts, ranks) -> None:
    shards = plan_shards(counts, ranks)
    assert len(shards) == ranks
    pieces = [piece for shard in shards for piece in shard]
    at = dict.fromkeys(range(len(counts)), 0)
    for piece in pieces:
        assert piece.begin == at[piece.slot] and piece.begin % BLOCK == 0
        at[piece.slot] = piece.end
    assert list(at.values()) == counts
    assert [p.slot for p in pieces] == sorted(p.slot for p in pieces)
    assert {p.slot for p in pieces} == set(range(len(counts)))
    for shard in shards:
        share = sum(p.end - p.begin for p in shard)
        assert abs(share - sum(counts) / ranks) <= BLOCK


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_parameter_of_no_elements_has_an_owner(ranks) -> None:
    assert [Piece(0, 0, 0)] in plan_shards([0], ranks)
