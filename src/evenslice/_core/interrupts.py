"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Terminated", "terminable", "without_interrupts"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what is under way ends as after Ctrl-C.

    Attributes:
        status: the exit status that a shell expects.
    """

    status = 128 + signal.SIGTERM


@contextmanager
def terminable() -> Iterator[None]:
    """Let the first SIGTERM raise ``Terminated`` in the block, if this is the main thread and nothing else answers it.

    Example:
        >>> try:
        ...     with terminable():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Terminated:
        ...     print("ended in order")
        ended in order
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block; processes that start in it never see one.

    Example:
        >>> try:
        ...     with without_interrupts():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("goes on")
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        goes on
        interrupted
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
