"""Ctrl-C and SIGTERM. Ctrl-C can be kept for later while something starts or ends that cannot be left in between.

    with DeferredInterrupts() as interrupts, started() as processes:
        with interrupts.heard():
            work(processes)

Threads and processes that start meanwhile never see the signal: a terminal sends it to every process of a command,
and it is for the first of them to answer.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DeferredInterrupts", "Terminated", "terminable"]


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


class DeferredInterrupts:
    """A context in which SIGINT has no effect until its end, or until a block in `heard`.

    Only the main thread can answer signals. In any other, this concerns only the threads and processes started.

    Example:
        >>> with DeferredInterrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGINT)
        ...     try:
        ...         with interrupts.heard():
        ...             print("never reached")
        ...     except KeyboardInterrupt:
        ...         print("heard")
        heard
    """

    def __init__(self) -> None:
        self._waiting = False
        self._before: Any = None  # the handler, where this thread can replace it
        self._mask: Any = None

    def __enter__(self) -> Self:
        """Begin to defer."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
        self._defer()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Answer an interrupt that is waiting, unless an error is on its way anyhow."""
        self._hear()
        if error is None:
            self._answer()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Answer interrupts in the block, first one that is waiting."""
        self._hear()
        try:
            self._answer()
            yield
        finally:
            self._defer()

    def _note(self, _number: int, _frame: object) -> None:
        self._waiting = True

    def _defer(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._note)
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def _hear(self) -> None:
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _answer(self) -> None:
        if self._waiting:
            self._waiting = False
            signal.raise_signal(signal.SIGINT)
