"""Pipeline schedules: pure functions from ranks and microbatches to what each rank does."""

from __future__ import annotations

from pycomm.parallel.schedules import gpipe, interleaved, one_f_one_b, sequential, zb_h1
