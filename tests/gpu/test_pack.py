"""The tests of tests/cuda/test_pack.py on a GPU."""

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

from tests.cuda.test_pack import *  # noqa: E402, F403
