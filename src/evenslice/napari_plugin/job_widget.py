"""What both widgets are: a volume, a network, a button that starts long work and one that cancels it, and a line of status."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton

from evenslice._core import EvensliceError
from evenslice.napari_plugin.job import Job, JobEvents
from evenslice.napari_plugin.layers import images, volume_of
from evenslice.napari_plugin.network_form import NetworkForm
from evenslice.napari_plugin.triton_first import load_triton

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Image
    from napari.viewer import Viewer

    from evenslice._core import ProgressReport
    from evenslice.napari_plugin.network_choice import NetworkChoice
    from evenslice.volumes import Volume

__all__ = ["JobWidget"]

LARGEST_NUMBER = 2**31 - 1  # that a progress bar of Qt takes

Result = TypeVar("Result")


class JobWidget(Container):  # type: ignore[type-arg]  # it holds widgets of several kinds
    """A widget that does long work with a network on an image layer.

    Args:
        viewer: the viewer.
        action: the text of the button.
    """

    def __init__(self, viewer: Viewer, action: str) -> None:
        load_triton()
        self.viewer = viewer
        self.layer = ComboBox(label="volume", choices=self._layers, nullable=False)
        self.network = NetworkForm()
        self.start = PushButton(text=action)
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(value=0, min=0, max=1, visible=False)
        self.status = Label(value="")
        buttons = Container(widgets=[self.start, self.cancel], layout="horizontal", labels=False)
        buttons.margins = (0, 0, 0, 0)
        form = Container(widgets=[self.layer])
        form.margins = (0, 0, 0, 0)
        super().__init__(widgets=[form, self.network, buttons, self.progress, self.status], labels=False)
        wrap(self.status)
        self._job: Job[Any] | None = None
        self.start.changed.connect(self._begin)
        self.cancel.changed.connect(self._cancel)
        self.native.destroyed.connect(self._abandon)

    @property
    def busy(self) -> bool:
        """Whether work is being done."""
        return self._job is not None

    def begin(self, choice: NetworkChoice, layer: Image, volume: Volume) -> None:
        """Begin the work of the widget by ``run``."""
        raise NotImplementedError

    def run(self, work: Callable[[], Result], done: Callable[[Result], None], doing: str) -> None:
        """Do work in a thread, then call a function with its result in this one.

        Args:
            work: what to do.
            done: what to do with the result.
            doing: what is being done, for the line of status.
        """

        def finish(result: Result) -> None:
            self._end("")
            done(result)

        self.say(f"{doing} …")
        self.start.enabled, self.cancel.enabled = False, True
        self.progress.min, self.progress.max, self.progress.value = 0, 0, 0  # no end in sight
        self.progress.visible = True
        self._job = Job(work, JobEvents(self._progressed, finish, self.refuse, self._ended))

    def say(self, text: str, *, error: bool = False) -> None:
        """Show a line of status."""
        text = escape(text)
        self.status.value = f'<span style="color: #e8543f">{text}</span>' if error else text

    def refuse(self, message: str) -> None:
        """Show an error, in one line."""
        self._end("")
        self.say(f"error: {message}", error=True)

    def _layers(self, _: object) -> list[Image]:
        return images(self.viewer)

    def _begin(self) -> None:
        if self.busy:
            return
        try:
            layer = self.layer.value
            volume = volume_of(layer)
            choice = self.network.choice()
        except EvensliceError as error:
            self.refuse(str(error))
            return
        self.begin(choice, layer, volume)

    def _cancel(self) -> None:
        if self._job is not None:
            self.cancel.enabled = False
            self.say("Cancelling …")
            self._job.cancel()

    def _progressed(self, report: ProgressReport) -> None:
        scale = -(-report.total // LARGEST_NUMBER) or 1
        self.progress.max = report.total // scale
        self.progress.value = min(report.done, report.total) // scale
        self.say(f"{report.title}: {report.done} of {report.total} {report.unit}")

    def _end(self, message: str) -> None:
        self._job = None
        self.start.enabled, self.cancel.enabled = True, False
        self.progress.visible = False
        self.say(message)

    def _ended(self, cancelled: bool) -> None:
        self._end("Cancelled." if cancelled else "Stopped by an error that napari shows.")

    def _abandon(self) -> None:
        if self._job is not None:
            self._job.abandon()


def wrap(label: Label) -> None:
    """Break the lines of a label, and let the mouse select its text."""
    from qtpy.QtCore import Qt

    label.native.setWordWrap(True)
    label.native.setTextFormat(Qt.TextFormat.RichText)
    label.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
