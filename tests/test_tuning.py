"""Choices: by costs among algorithms of one order, by PYCOMM_ALGORITHM, alike on all ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycomm.algorithms.registry import algorithms
from pycomm.costs import LINKS, Costs, Link
from pycomm.errors import ArgumentError
from pycomm.measure import fit
from pycomm.transport.base import counterparts
from pycomm.transport.shm import SharedMemory
from pycomm.tuning import Tuning, Wish, link_name
from tests.launch import mpirun, run

KINDS = list(dict.fromkeys(a.kind for a in algorithms()))
NAMES = list(dict.fromkeys(a.name for a in algorithms()))


def ranks_on(hosts, shared=True):
    """Return what a choice sees of a transport between ranks on such hosts."""
    levels = counterparts(hosts, 0) or (None, None)
    local, across = (SimpleNamespace(size=len(ranks)) if ranks else None for ranks in levels)
    one = len(set(hosts)) == 1
    fused = SharedMemory.fused if one and shared else frozenset()
    return SimpleNamespace(
        size=len(hosts), hosts=len(set(hosts)), fused=fused, local=local, across=across
    )


ONE_HOST, TWO_HOSTS, UNEVEN = ranks_on([0, 0, 0]), ranks_on([0, 0, 1, 1]), ranks_on([0, 0, 1])

numbers = st.floats(1e-3, 1e6)
links = st.builds(Link, numbers, numbers)
tables = st.builds(
    Costs,
    links,
    links,
    links,
    st.dictionaries(
        st.sampled_from([f"{w}/{a.kind}/{a.name}" for w in LINKS for a in algorithms()]), links
    ),
)
layouts = st.builds(ranks_on, st.lists(st.integers(0, 3), min_size=1, max_size=9), st.booleans())
sizes = st.integers(0, 1 << 34)
wishes = st.builds(
    lambda exclude, names: Wish("^" * (exclude and bool(names)) + ",".join(names)),
    st.booleans(),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
)


def chosen(tuning, kind, transport, nbytes, order):
    try:
        return tuning.choose(kind, transport, nbytes, order=order).algorithm
    except ArgumentError:
        return None


@given(
    st.sampled_from(KINDS),
    layouts,
    wishes,
    st.sampled_from([None, "rank"]),
    st.sampled_from(["", "rank"]),
    st.lists(st.tuples(tables, sizes), min_size=2, max_size=8),
)
def test_no_table_and_no_size_changes_the_order_of_a_sum(
    kind, transport, wish, order, setting, cases
):
    found = [
        chosen(Tuning(costs, wish, setting), kind, transport, nbytes, order)
        for costs, nbytes in cases
    ]
    assert len({a and a.order for a in found}) == 1
    if found[0]:
        assert all(a.supports(transport) for a in found)
        assert found[0].order == "rank" or not (order or setting)
        assert not ("direct" in transport.fused and wish.text == "" and found[0].name != "direct")


def costs_of(latency_us, bandwidth_gbps):
    link = Link(latency_us, bandwidth_gbps, "measured")
    return Costs(link, link, link)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [(costs_of(1000, 10), "hierarchical_gather"), (costs_of(0.01, 0.01), "hierarchical")],
)
def test_the_costs_decide_within_an_order(costs, expected):
    assert Tuning(costs).choose("all_reduce", TWO_HOSTS, 1 << 14).algorithm.name == expected


def test_what_was_measured_of_an_algorithm_goes_before_its_link():
    link, slow = Link(1, 1, "measured"), Link(1000, 0.001, "measured")
    costs = Costs(hosts=link, algorithms={"hosts/all_reduce/ring": slow})
    assert Tuning(costs).choose("all_reduce", UNEVEN, 1 << 30).algorithm.name == "ring_gather"
    assert Tuning(costs).choose("all_gather", UNEVEN, 1 << 30).predicted_us < 1e7


def test_a_prediction_is_latency_times_steps_plus_bytes_over_bandwidth():
    ring = next(a for a in algorithms("all_reduce") if a.name == "ring")
    assert Tuning(costs_of(7, 2)).predict_us(ring, UNEVEN, 3000) == 4 * 7 + 4000 / 2e3


def test_the_ranks_of_a_host_share_its_wire():
    """Each of two ranks on each of two hosts sends S/2: together S."""
    name = next(a for a in algorithms("all_reduce") if a.name == "hierarchical")
    assert Tuning(costs_of(1, 1)).predict_us(name, TWO_HOSTS, 8000) == 4 + 8


@pytest.mark.parametrize(
    ("transport", "name", "expected"),
    [
        (ONE_HOST, "direct", "memory"),
        (ONE_HOST, "ring", "messages"),
        (UNEVEN, "ring", "hosts"),
    ],
)
def test_bytes_travel_in_memory_within_a_host_or_between_hosts(transport, name, expected):
    algorithm = next(a for a in algorithms("all_reduce") if a.name == name)
    assert link_name(algorithm, transport) == expected


@pytest.mark.parametrize(
    ("wish", "transport", "kind", "expected"),
    [
        ("", ONE_HOST, "all_reduce", "direct"),
        ("ring", ONE_HOST, "all_reduce", "ring"),
        ("ring", ONE_HOST, "broadcast", "direct"),
        ("^ring", ONE_HOST, "all_reduce", "direct"),
        ("^direct", ONE_HOST, "all_reduce", "pairwise"),
        ("^direct", ONE_HOST, "broadcast", "binomial"),
        ("^direct, pairwise", ONE_HOST, "all_reduce", "gather"),
        ("^ring", UNEVEN, "all_reduce", "ring_gather"),
        ("^ring,ring_gather", UNEVEN, "all_reduce", "pairwise"),
        ("^ring", UNEVEN, "reduce_scatter", "pairwise"),
        ("pairwise", TWO_HOSTS, "all_reduce", "pairwise"),
        ("hierarchical", UNEVEN, "all_reduce", "ring"),
        ("ring,pairwise", UNEVEN, "reduce", "ring"),
    ],
)
def test_the_environment_asks_and_excludes(wish, transport, kind, expected):
    choice = Tuning(wish=Wish(wish)).choose(kind, transport, 1 << 24)
    assert choice.algorithm.name == expected


def test_a_call_goes_before_the_environment():
    tuning = Tuning(wish=Wish("^ring"))
    assert tuning.choose("all_reduce", UNEVEN, 8, name="ring").algorithm.name == "ring"
    asks = Tuning(wish=Wish("ring"))
    assert asks.choose("all_reduce", UNEVEN, 8, order="rank").algorithm.order == "rank"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("rnig", "there is no algorithm 'rnig'; there are direct, ring,"),
        ("^ring,^gather", "there is no algorithm '^gather'.*a ^ at the beginning excludes all"),
    ],
)
def test_unknown_names_are_errors_that_list_the_known(wish, expected):
    with pytest.raises(ArgumentError, match=expected.replace("^", r"\^")):
        Wish(wish)


def test_excluding_all_is_an_error_that_names_what_could_be_left():
    tuning = Tuning(wish=Wish("^binomial,direct"))
    message = "leaves no algorithm for broadcast on 3 ranks: leave one of direct, binomial"
    with pytest.raises(ArgumentError, match=message):
        tuning.choose("broadcast", ONE_HOST, 8)


def test_unknown_collectives_are_errors_that_list_the_known():
    with pytest.raises(ArgumentError, match="no collective 'allreduce': choose from all_reduce"):
        Tuning().explain("allreduce", ONE_HOST, 8)


def test_an_explanation_has_the_choice_the_alternatives_and_the_source():
    costs = Costs(hosts=Link(10, 1, "measured on a Monday"))
    lines = Tuning(costs, Wish("^ring")).explain("all_reduce", UNEVEN, 3000).splitlines()
    assert lines[0] == (
        "all_reduce of 3000 B on 3 ranks: ring_gather (cheapest of ring_gather; adds in ring "
        "order); 26.0 us"
    )
    text = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert text["ring"] == (
        "44.0 us = 4 × 10 us + 4000 B / 1 GB/s left out by PYCOMM_ALGORITHM=^ring"
    )
    assert text["ring_gather"].endswith("chosen")
    assert text["gather"].endswith("adds in rank order")
    assert text["direct"] == "needs shared memory between all ranks"
    assert lines[-1] == "  costs: measured on a Monday"


def test_an_explanation_says_what_is_guessed_and_how_to_measure():
    lines = Tuning().explain("broadcast", ONE_HOST, 8).splitlines()
    assert lines[0].startswith("broadcast of 8 B on 3 ranks: direct (all ranks share memory); ")
    assert "  costs: guessed" in lines and "doctor --tune" in lines[-1]


def test_a_fit_finds_latency_and_bandwidth():
    loads = [(2, nbytes) for nbytes in (8, 1000, 100_000, 10_000_000)]
    latency_us, bandwidth_gbps = fit(loads, [2 * 3 + nbytes / 4e3 for _, nbytes in loads])
    assert latency_us == pytest.approx(3) and bandwidth_gbps == pytest.approx(4)


@pytest.mark.parametrize("times", [[5.0, 4.0, 3.0], [1e-9, 1.0, 100.0]])
def test_a_fit_to_noise_is_positive(times):
    assert min(fit([(1, 8), (1, 1000), (1, 100_000)], times)) > 0


# ---- with ranks

DIFFERENT_CACHES = """
import os, sys
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
os.environ["XDG_CACHE_HOME"] = os.path.join(sys.argv[1], str(rank))
import numpy as np
import pycomm
from pycomm import costs
from pycomm.transport.mpi import library_name
mpi = library_name(MPI.Get_library_version())
latency_us = [1e6, 1e-3, None][rank]
if latency_us:
    link = costs.Link(latency_us, 1.0, f"measured by rank {rank}")
    costs.save(costs.Costs(messages=link), "", mpi)
else:
    file = costs.cache_file(mpi)
    file.parent.mkdir(parents=True)
    file.write_text("broken")
comm = pycomm.init(timeout=20)
x = np.ones(100_000)
assert (comm.all_reduce(x) == 3).all()
texts = comm.all_gather_object(comm.explain("all_reduce", x.nbytes))
assert len(set(texts)) == 1, texts
if rank == 0:
    sys.stdout.write(texts[0])
"""


def test_all_ranks_choose_by_the_table_of_rank_0(tmp_path):
    """Rank 1's says otherwise, and rank 2's is broken: it is not even looked at."""
    result = mpirun(3, "-c", DIFFERENT_CACHES, tmp_path, env={"PYCOMM_SHARED_MEMORY": "0"})
    assert result.returncode == 0, result.stderr
    assert "ring_gather (cheapest" in result.stdout and "measured by rank 0" in result.stdout
    assert "is not used" not in result.stderr


def test_without_shared_memory_by_wish_the_sums_stay_the_same():
    """^direct: messages instead of quick calls, in rank order."""
    program = """
        n = comm.size
        for count in (75, 500_001):
            data = [np.random.default_rng(r).standard_normal(count, np.float32) for r in range(n)]
            before = comm.stats.bytes_sent
            got = comm.all_reduce(data[comm.rank].copy())
            sent = comm.stats.bytes_sent - before
            assert sent == (2 * got.nbytes if count == 75 else 4 * got.nbytes // 3), (count, sent)
            assert got.tobytes() == (data[0] + data[1] + data[2]).tobytes()
        comm.barrier()
    """
    result, _ = run(3, program, env={"PYCOMM_ALGORITHM": "^direct"})
    assert result.returncode == 0, result.stderr


def test_what_rank_0_says_about_algorithms_counts():
    program = """
        comm.all_reduce(np.ones(10))
        everyone = comm.all_gather_object(comm.explain("all_reduce", 80).split()[7])
        assert everyone == ["ring"] * 2, everyone
    """
    first_only = "import os\nfrom mpi4py import MPI\n"
    first_only += "if MPI.COMM_WORLD.rank: del os.environ['PYCOMM_ALGORITHM']\n"
    start = "import numpy as np, pycomm\ncomm = pycomm.init(timeout=20)\n"
    code = first_only + start + "\n".join(line.strip() for line in program.splitlines())
    result = mpirun(2, "-c", code, env={"PYCOMM_ALGORITHM": "ring"})
    assert result.returncode == 0, result.stderr


@pytest.mark.mpirun
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("ALGORITHM", "rnig", ": there is no algorithm 'rnig'"), ("ORDER", "rnak", " is not 'rank'")],
)
def test_a_wrong_setting_ends_the_job_at_start_up(name, value, expected):
    result, _ = run(2, "", env={f"PYCOMM_{name}": value})
    assert result.returncode != 0
    assert f"PYCOMM_{name}={value!r}{expected}" in result.stderr
