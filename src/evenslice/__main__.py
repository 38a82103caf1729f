"""Lets ``python -m evenslice`` do what ``evenslice`` does."""

from evenslice.cli import main

main()
