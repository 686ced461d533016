"""The CUDA kernels, built for the host."""
