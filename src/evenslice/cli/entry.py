"""Where the command line starts and ends, quietly even if the user interrupts while its modules are imported."""

import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit.

    The status is 0 when done, 1 if ``--fail-on-bias`` found a bias or runs of a study failed, 2 if the user's input is
    at fault, 70 after an internal error, 130 if interrupted, 141 if the reader of the output has gone.
    """
    try:
        from evenslice.cli.app import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # another interrupt, while Python ends, draws no traceback
        sys.stderr.write("interrupted\n")
    sys.exit(status)
