"""What trainers.py trains, by whom, and how it is measured."""
