"""What train.py, the benchmarks and the tests train: models and data."""
