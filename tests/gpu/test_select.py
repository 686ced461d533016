"""The tests of tests/cuda/test_select.py on a GPU."""

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

from tests.cuda.test_select import *  # noqa: E402, F403
