"""Long work of a widget in a thread of napari: with progress, cancelled between two steps of it, errors in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal  # type: ignore[attr-defined]  # a name that qtpy gives it

from evenslice._core import EvensliceError, ProgressReport, progress_to

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "JobEvents"]

Result = TypeVar("Result")


class _Cancelled(BaseException):
    """Ends the work; like KeyboardInterrupt, nothing that handles errors may stop it."""


@dataclass(frozen=True)
class _Failure:
    message: str


@dataclass(frozen=True)
class JobEvents(Generic[Result]):
    """What is called in the thread of the viewer: of the last three, one.

    Attributes:
        progressed: with each report of the work's progress.
        done: with the result.
        failed: with an error of evenslice, one line. Any other is shown by napari, as those of all plugins are.
        ended: when there is neither, with whether the work was cancelled; else it failed otherwise.
    """

    progressed: Callable[[ProgressReport], None]
    done: Callable[[Result], None]
    failed: Callable[[str], None]
    ended: Callable[[bool], None]


class _Reporter(QObject):
    """Carries reports from the thread of the work to that of the viewer."""

    reported = Signal(object)


class Job(Generic[Result]):
    """Work that is done in a thread of its own from now on.

    Args:
        work: what to do; what it raises is an error of evenslice, or a bug.
        events: what to call.
    """

    def __init__(self, work: Callable[[], Result], events: JobEvents[Result]) -> None:
        self._events: JobEvents[Any] | None = events
        self._answered = False
        self._work = work
        self._reporter = _Reporter()
        self._reporter.reported.connect(self._tell)
        self._worker = create_worker(self._run)
        self._worker.returned.connect(self._returned)
        self._worker.finished.connect(self._finished)
        self._worker.start()

    def cancel(self) -> None:
        """Ask the work to end; ``ended`` tells when it has."""
        self._worker.quit()

    def abandon(self) -> None:
        """Cancel the work, and call nothing any more: the widget is gone."""
        self._events = None
        self.cancel()

    def _run(self) -> Result | _Failure | None:
        try:
            with progress_to(self._report):
                return self._work()
        except _Cancelled:
            return None
        except EvensliceError as error:
            return _Failure(str(error))

    def _report(self, report: ProgressReport) -> None:
        if self._worker.abort_requested:
            raise _Cancelled
        self._reporter.reported.emit(report)

    def _tell(self, report: ProgressReport) -> None:
        if self._events is not None and not self._worker.abort_requested:
            self._events.progressed(report)

    def _returned(self, result: Any) -> None:
        if self._events is None:
            return
        self._answered = True
        if isinstance(result, _Failure):
            self._events.failed(result.message)
        else:
            self._events.done(result)

    def _finished(self) -> None:
        if self._events is not None and not self._answered:
            self._events.ended(self._worker.abort_requested)
