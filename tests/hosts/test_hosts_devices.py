"""Arrays on GPUs of several hosts: doubles that reach each other within a host and no further."""

from __future__ import annotations

import textwrap

import pytest

from tests.hosts.test_hosts import told

pytestmark = pytest.mark.mpirun

DOUBLES = """
from pycomm.device_levels import Levels
from tests.mpi.devices import doubles, ordinary, symmetric, transport_of

mates = [f"double {r}" for r in range(n) if r // comm.local.size == rank // comm.local.size]

def same(dev, call, *shape, dtype="float32"):
    '''Do a collective on the host and by a double: the same bits.'''
    host = np.random.default_rng(rank).standard_normal(shape).astype(dtype)
    for make in (ordinary, symmetric):
        got, want = call(make(dev, host)), call(host.copy())
        assert (got is None) == (want is None), make
        assert want is None or got.get().tobytes() == want.tobytes(), (make, shape, dtype)

"""


def with_doubles(program: str) -> str:
    """Return a program that has `dev`, whose ranks have doubles, and small segments."""
    start = "with doubles(comm, n, 0.0, mates, segment_bytes=4096) as dev:\n"
    return DOUBLES + start + textwrap.indent(textwrap.dedent(program), "    ")


@pytest.mark.parametrize(("number", "ranks"), [(2, 1), (2, 2)])
def test_device_arrays_get_the_bits_of_the_hosts(number, ranks):
    program = with_doubles(
        """
        counts = [700 * r for r in range(n)]
        for dtype in ("float32", "float16"):
            for count in (0, 1, 5000):
                same(dev, dev.all_reduce, count, dtype=dtype)
                same(dev, lambda x: dev.all_reduce(x, "avg", order="rank"), count, dtype=dtype)
        same(dev, dev.reduce_scatter, n, 900)
        same(dev, lambda x: dev.all_gather(x, counts=counts), counts[rank], 2)
        same(dev, lambda x: dev.broadcast(x, n - 1), 3000)
        same(dev, lambda x: dev.reduce(x, root=1), 3000)
        same(dev, lambda x: dev.gather(x, 0), 900)
        same(dev, dev.all_to_all, n, 500)
        assert isinstance(transport_of(dev), Levels) == (comm.local.size > 1)
        tell(type(transport_of(dev)).__name__)
        """
    )
    assert told(number, ranks, program) == [["Levels" if ranks > 1 else "Staged"] * number * ranks]


def test_a_host_sends_no_more_of_device_arrays_than_of_others():
    """2(h−1)/h of S, by the algorithm that large calls take."""
    program = with_doubles(
        """
        x = ordinary(dev, np.ones(1_000_000, np.float32))
        dev.all_reduce(x)
        tell(sent_by(lambda: dev.all_reduce(x)) / x.nbytes)
        """
    ).replace("4096", "1 << 20")
    for share in told(2, 2, program)[0]:
        assert 1 <= share < 1.05
