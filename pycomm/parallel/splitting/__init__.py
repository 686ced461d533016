"""Splitting any model into parts: its graph of calls, cuts through it, and what crosses them."""
