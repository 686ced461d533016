"""The tests of tests/cuda/test_dropout.py on a GPU."""

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

from tests.cuda.test_dropout import *  # noqa: E402, F403
