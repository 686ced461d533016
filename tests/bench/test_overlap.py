"""What hides behind computing, as it is worked out; test_runs.py launches it."""

import pytest

from bench import overlap


@pytest.mark.parametrize(
    ("both", "percent"), [(20.0, 100.0), (19.0, 100.0), (25.0, 50.0), (30.0, 0.0), (35.0, 0.0)]
)
def test_hidden_is_what_does_not_show_beside_computing(both, percent):
    assert overlap.hidden_percent(comm=10.0, compute=20.0, both=both) == percent
