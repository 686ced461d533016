"""Benchmarks that verify before they time: collectives.py, p2p.py and plot.py are for the shell."""
