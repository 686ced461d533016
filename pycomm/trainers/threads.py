"""How many threads torch computes with on each rank."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def share_cores(comm: Communicator) -> None:
    """Give torch this rank's share of the host's cores, unless OMP_NUM_THREADS says how many.

    Without it every rank would start a thread for each core.
    """
    ranks = comm.local.size  # collective: every rank must ask, whatever its environment says
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
