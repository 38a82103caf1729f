"""What both widgets are: a volume, a network, a button that starts long work and one that cancels it, and a line of status."""

from __future__ import annotations

import os
import sys
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton
from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal  # type: ignore[attr-defined]  # a name that qtpy gives it

from evenslice import EvensliceError
from evenslice._core import progress_to
from evenslice.napari_plugin.layers import images, volume_of
from evenslice.napari_plugin.network_form import NetworkForm

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Image
    from napari.viewer import Viewer

    from evenslice import Segmenter, Volume

Result = TypeVar("Result")


class _Cancelled(BaseException):
    """Ends the work; like KeyboardInterrupt, nothing that handles errors may stop it."""


class _Reporter(QObject):
    """Carries reports from the thread of the work to that of the viewer."""

    reported = Signal(object)


class JobWidget(Container):  # type: ignore[type-arg]  # it holds widgets of several kinds
    """A widget that does long work with a network on an image layer.

    Args:
        viewer: the viewer.
        action: the text of the button.
    """

    def __init__(self, viewer: Viewer, action: str) -> None:
        load_triton()
        self.viewer = viewer
        self.layer = ComboBox(label="volume", choices=lambda _: images(viewer), nullable=False)
        self.network = NetworkForm()
        self.start = PushButton(text=action)
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(value=0, min=0, max=1, visible=False)
        self.status = text_label()
        buttons = Container(widgets=[self.start, self.cancel], layout="horizontal", labels=False)
        buttons.margins = (0, 0, 0, 0)
        form = Container(widgets=[self.layer])
        form.margins = (0, 0, 0, 0)
        super().__init__(widgets=[form, self.network, buttons, self.progress, self.status], labels=False)
        self._worker: Any = None
        self.start.changed.connect(self._begin)
        self.cancel.changed.connect(self._cancel)
        self.native.destroyed.connect(self._abandon)

    @property
    def busy(self) -> bool:
        """Whether work is being done."""
        return self._worker is not None

    def begin(self, load: Callable[[], Segmenter], layer: Image, volume: Volume) -> None:
        """Begin the work of the widget by ``run``."""
        raise NotImplementedError

    def run(self, work: Callable[[], Result], done: Callable[[Result], None], doing: str) -> None:
        """Do work in a thread, then call a function with its result in this one.

        An error of evenslice is shown here, in one line; any other by napari, as those of all plugins are.

        Args:
            work: what to do, which is cancelled where it reports its progress.
            done: what to do with the result.
            doing: what is being done, for the line of status.
        """
        reporter = _Reporter()
        outcomes: list[tuple[Any, str]] = []

        def report(*progress: Any) -> None:
            if worker.abort_requested:
                raise _Cancelled
            reporter.reported.emit(progress)

        def attempt() -> tuple[Any, str]:
            try:
                with progress_to(report):
                    return work(), ""
            except _Cancelled:
                return None, ""
            except EvensliceError as error:
                return None, str(error)

        def finish() -> None:
            if self._worker is not worker:
                return  # the widget is gone
            if not outcomes:
                stopped = "Cancelled." if worker.abort_requested else "Stopped by an error that napari shows."
                self._end(stopped)
                return
            ((result, error),) = outcomes
            if error:
                self.refuse(error)
            else:
                self._end("")
                done(result)

        self.say(f"{doing} …")
        self.start.enabled, self.cancel.enabled = False, True
        self.progress.min, self.progress.max, self.progress.value = 0, 0, 0  # no end in sight
        self.progress.visible = True
        self._worker = worker = create_worker(attempt)
        reporter.reported.connect(self._progressed)
        worker.returned.connect(outcomes.append)
        worker.finished.connect(finish)
        worker.start()

    def say(self, text: str, *, error: bool = False) -> None:
        """Show a line of status."""
        text = escape(text)
        self.status.value = f'<span style="color: #e8543f">{text}</span>' if error else text

    def refuse(self, message: str) -> None:
        """Show an error, in one line."""
        self._end("")
        self.say(f"error: {message}", error=True)

    def _begin(self) -> None:
        if self.busy:
            return
        try:
            layer = self.layer.value
            volume = volume_of(layer)
            load = self.network.choice()
        except EvensliceError as error:
            self.refuse(str(error))
            return
        self.begin(load, layer, volume)

    def _cancel(self) -> None:
        if self._worker is not None:
            self.cancel.enabled = False
            self.say("Cancelling …")
            self._worker.quit()

    def _progressed(self, report: tuple[str, int, int, str]) -> None:
        if self._worker is None or self._worker.abort_requested:
            return
        title, done, total, unit = report
        self.progress.max = 1000  # Qt's numbers are smaller than those of some reports
        self.progress.value = 1000 * min(done, total) // max(total, 1)
        self.say(f"{title}: {done} of {total} {unit}")

    def _end(self, message: str) -> None:
        self._worker = None
        self.start.enabled, self.cancel.enabled = True, False
        self.progress.visible = False
        self.say(message)

    def _abandon(self) -> None:
        """Cancel the work, and show nothing any more: the widget is gone."""
        if self._worker is not None:
            self._worker.quit()
            self._worker = None


def text_label() -> Label:
    """Return a label whose lines are broken, and whose text the mouse can select."""
    from qtpy.QtCore import Qt

    label = Label(value="")
    label.native.setWordWrap(True)
    label.native.setTextFormat(Qt.TextFormat.RichText)
    label.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def load_triton() -> None:
    """Load Triton, which comes with PyTorch on Linux, into a process that draws with Mesa, with its own symbols.

    Both bring an LLVM of their own. Triton's would use the symbols of Mesa's, which is there first in a viewer, and crash
    the process as soon as torchvision imports it (tensorflow/tensorflow issue 124205 describes the like).
    """
    if not hasattr(os, "RTLD_DEEPBIND") or "triton" in sys.modules or find_spec("triton") is None:
        return
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        import triton._C.libtriton  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: F401
    finally:
        sys.setdlopenflags(before)
