"""The kernels on a GPU: `make gpu-test`. Without one every file skips, and says what is missing."""
