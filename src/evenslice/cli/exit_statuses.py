"""The exit statuses of commands that were ended by a signal, as shells expect them."""

__all__ = ["INTERRUPTED", "TERMINATED"]

INTERRUPTED, TERMINATED = 130, 143
