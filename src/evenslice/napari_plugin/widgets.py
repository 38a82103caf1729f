"""The widgets: one audits a network on a layer and explains the slice in view, one segments the layer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import PushButton

from evenslice import audit, explain, segment
from evenslice.napari_plugin.job_widget import JobWidget, text_label
from evenslice.napari_plugin.layers import MADE_HERE, add_maps, placement, position
from evenslice.report import html_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.viewer  # the annotation tells napari to pass its viewer
    from napari.layers import Image, Layer
    from napari.utils.events import Event
    from numpy.typing import NDArray

    from evenslice import Audit, Explanation, Segmenter, Volume


@dataclass(frozen=True)
class _Audited:
    """What was audited, for maps of further slices."""

    audit: Audit
    network: Segmenter
    volume: Volume
    layer: Image

    @property
    def axis(self) -> int:
        """The axis of the layer along which slices follow one another."""
        return "zyx".index(self.network.reading.plane)

    def maps(self, place: tuple[int, int, int]) -> Explanation:
        """Explain the slice through a voxel (z, y, x) of the layer, in the part of the plane around it."""
        y, x = (place[axis] for axis in range(3) if axis != self.axis)
        return explain(self.network, self.volume, place[self.axis], at=(y, x))


class AuditWidget(JobWidget):
    """Audits a network on the chosen layer, shows the verdict, and adds layers for the slice in view.

    Args:
        viewer: the viewer.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "Audit")
        self._maps: list[Layer] = []
        self._audited: _Audited | None = None
        self.verdict, self.legend = text_label(), text_label()
        self.explain = PushButton(text="Explain the slice in view", enabled=False)
        self.extend([self.verdict, self.legend, self.explain])
        self.explain.changed.connect(self._explain)

    @property
    def audit(self) -> Audit | None:
        """The last audit; None before there is one."""
        return None if self._audited is None else self._audited.audit

    def begin(self, load: Callable[[], Segmenter], layer: Image, volume: Volume) -> None:
        """Audit a network on a layer."""
        self._audited, self.verdict.value, self.explain.enabled = None, "", False
        self._clear()

        def work() -> _Audited:
            network = load()
            return _Audited(audit(network, volume), network, volume, layer)

        self.run(work, self._show_verdict, "Loading the network")

    def _show_verdict(self, audited: _Audited) -> None:
        self._audited = audited
        self.verdict.value = f"{html_of(audited.audit)}<p>{escape(_note(audited.network))}</p>"
        self._explain()

    def _explain(self) -> None:
        audited = self._audited
        if audited is None or self.busy:
            return
        if audited.layer not in self.viewer.layers:
            self.refuse(f"{audited.layer.name}: the layer was removed; audit again")
            return
        place = position(self.viewer, audited.layer)
        self.explain.enabled = False
        self.run(
            lambda: audited.maps(place),
            lambda maps: self._show_maps(maps, audited),
            "Explaining the slice in view",
        )

    def _show_maps(self, maps: Explanation, audited: _Audited) -> None:
        self._clear()
        self._maps = add_maps(self.viewer, maps, audited.layer, audited.axis)
        self.legend.value = (
            f"<p>Slice {maps.z}: red adds to the answer, blue takes from it. By {maps.caption}.</p>"
        )

    def _clear(self) -> None:
        """Remove the maps that are still there."""
        for layer in self._maps:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        self._maps, self.legend.value = [], ""

    def _end(self, message: str) -> None:
        super()._end(message)
        self.explain.enabled = self._audited is not None


def _note(network: Segmenter) -> str:
    """Say which parts of a network are random; empty if none is."""
    random = () if network.source is None else network.source.missing or network.source.untrained
    what = "The network is" if random == ("*",) else f"Parts of the network ({', '.join(random)}) are"
    return f"{what} random; train it before you use its answers." if random else ""


class SegmentWidget(JobWidget):
    """Segments the chosen layer, slice by slice, into a layer of labels in the same place.

    The labels lie in a temporary file, which goes with the layer or at the end.

    Args:
        viewer: the viewer.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "Segment")

    def begin(self, load: Callable[[], Segmenter], layer: Image, volume: Volume) -> None:
        """Segment a layer."""
        folder = tempfile.TemporaryDirectory(prefix="evenslice-", ignore_cleanup_errors=True)

        def work() -> tuple[NDArray[Any], str]:
            network = load()
            segment(network, volume, Path(folder.name) / "labels.npy")
            labels = np.load(Path(folder.name) / "labels.npy", mmap_mode="r+")
            largest = max(int(plane.max()) for plane in labels)
            return labels, f"Done; largest label: {largest}. {_note(network)}"

        def show(found: tuple[NDArray[Any], str]) -> None:
            labels, message = found

            def clean_up(event: Event) -> None:  # napari may hold on to the layer itself
                if event.value.data is labels:
                    folder.cleanup()

            name = f"{layer.name} segmented"
            self.viewer.add_labels(labels, name=name, metadata=MADE_HERE, **placement(layer))
            self.viewer.layers.events.removed.connect(clean_up)
            self.say(message.strip())

        self.run(work, show, "Loading the network")
