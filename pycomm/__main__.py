"""The way in for `python -m pycomm`."""

from pycomm.cli import main

main(prog_name="pycomm")
