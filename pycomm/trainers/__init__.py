"""The two trainers, and what they share: the loop, data order, checkpoints, reports."""
