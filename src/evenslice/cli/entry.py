"""Where the command line starts and ends, quietly even if the user interrupts while its modules are imported."""

import signal
import sys
from contextlib import suppress

from evenslice._core import keep_freed_memory

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses of commands that were ended by a signal, as shells expect them."""


def main() -> None:
    """Run the command line and exit.

    The status is 0 when done, 1 if ``--fail-on-bias`` found a bias, an audit less than ``--require`` asks for, or runs of
    a study or networks of a survey failed, 2 if the user's input is at fault, 70 after an internal error, 130 if
    interrupted, 141 if the reader of the output has gone, 143 if a training, a study or a command with workers was ended
    by SIGTERM.
    """
    keep_freed_memory()
    try:
        from evenslice.cli.app import run

        status, told = run(sys.argv[1:]), True
    except KeyboardInterrupt as error:
        status, told = getattr(error, "status", INTERRUPTED), False
    if status in {INTERRUPTED, TERMINATED}:
        # Another interrupt, while Python ends, draws no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not told:
        with suppress(OSError):  # the status tells it, too
            sys.stderr.write("terminated\n" if status == TERMINATED else "interrupted\n")
    sys.exit(status)
