"""Which cores ranks may use, on made-up machines."""

from __future__ import annotations

import pytest

from pycomm.cores import UNKNOWN, are_crowded, socket_of


@pytest.mark.parametrize(
    ("affinities", "crowded"),
    [
        ([[0]], False),
        ([[0, 1], [0, 1]], False),
        ([[0, 1], [0, 1], [0, 1]], True),
        ([[0], [1]], False),
        ([[0], [0], [1, 2]], True),
        ([[0, 1], [0, 1], [1, 2]], False),
        ([[0, 1]] * 2 + [[2, 3]] * 2, False),
        ([[0, 1]] * 3 + [[2, 3]], True),
    ],
)
def test_ranks_are_crowded_where_some_must_share_a_core(affinities, crowded):
    assert are_crowded(affinities) == crowded


def test_the_socket_of_a_rank_is_known_where_all_its_cores_are_on_it(tmp_path):
    for core, package in enumerate([0, 0, 1, 1, "none"]):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
    assert [socket_of(cores, tmp_path) for cores in ([0, 1], [2], [3, 2])] == [0, 1, 1]
    assert [socket_of(cores, tmp_path) for cores in ([1, 2], [4], [5], [])] == [UNKNOWN] * 4
