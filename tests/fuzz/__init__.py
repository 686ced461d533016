"""Random operations of every kind, drawn from one seed on all ranks, and compared with NumPy."""
