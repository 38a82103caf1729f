"""Lets ``python -m evenslice`` do what ``evenslice`` does."""

import sys

if not sys.flags.safe_path:
    # The current directory, from which the command ``evenslice`` imports only what the user names.
    del sys.path[0]

from evenslice.cli import main

main()
