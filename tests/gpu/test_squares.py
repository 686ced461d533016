"""The tests of tests/cuda/test_squares.py on a GPU."""

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

from tests.cuda.test_squares import *  # noqa: E402, F403
