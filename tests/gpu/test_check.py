"""The tests of tests/cuda/test_check.py on a GPU."""

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

from tests.cuda.test_check import *  # noqa: E402, F403
