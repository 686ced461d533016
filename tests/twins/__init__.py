"""The elementwise kernels once more, in Numba: to read, and to run in its simulator.

The simulator must be chosen before Numba is imported: tests/kernels/test_twins.py runs these tests
in a process of their own, `NUMBA_ENABLE_CUDASIM=1 pytest tests/twins`. It runs one block at a time,
each thread as a thread of Python.
"""
