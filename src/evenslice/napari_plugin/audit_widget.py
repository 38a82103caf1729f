"""The widget that audits a network on a layer: the verdict, and what the network makes of the slice in view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from magicgui.widgets import Label, PushButton

from evenslice.auditing import audit, explain
from evenslice.napari_plugin.job_widget import JobWidget, wrap
from evenslice.napari_plugin.layers import position
from evenslice.napari_plugin.map_layers import MapLayers
from evenslice.napari_plugin.network_choice import random_parts
from evenslice.report import audit_html
from evenslice.volumes import reslice

if TYPE_CHECKING:
    import napari.viewer  # the annotation tells napari to pass its viewer
    from napari.layers import Image

    from evenslice.auditing import Audit, Explanation
    from evenslice.inference import Segmenter
    from evenslice.napari_plugin.network_choice import NetworkChoice
    from evenslice.volumes import Volume

__all__ = ["AuditWidget"]


@dataclass(frozen=True)
class _Audited:
    """What was audited, for maps of further slices; ``random`` names parts of the network that had no weights."""

    audit: Audit
    network: Segmenter
    random: tuple[str, ...]
    volume: Volume
    layer: Image

    @property
    def axis(self) -> int:
        """The axis of the layer along which slices follow one another."""
        return "zyx".index(self.network.reading.plane)

    def maps(self, place: tuple[int, int, int]) -> Explanation:
        """Explain the slice through a voxel (z, y, x) of the layer, in the part of the plane around it."""
        y, x = (place[axis] for axis in range(3) if axis != self.axis)
        run = self.audit.run
        low, high = run.volumes[0].intensity
        return explain(
            self.network,
            self.volume,
            place[self.axis],
            slices=run.slices,
            at=(y, x),
            reading=replace(self.network.reading, intensity=(low, high), fill=run.volumes[0].fill),
        )


class AuditWidget(JobWidget):
    """Audits a network on the chosen layer, shows the verdict, and adds layers for the slice in view.

    Args:
        viewer: the viewer.

    Attributes:
        audit: the last audit; None before there is one.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "Audit")
        self._maps = MapLayers(viewer)
        self._audited: _Audited | None = None
        self.verdict = Label(value="")
        self.explain = PushButton(text="Explain the slice in view", enabled=False)
        self.legend = Label(value="")
        self.extend([self.verdict, self.legend, self.explain])
        wrap(self.verdict)
        wrap(self.legend)
        self.explain.changed.connect(self._explain)

    @property
    def audit(self) -> Audit | None:
        """The last audit."""
        return None if self._audited is None else self._audited.audit

    def begin(self, choice: NetworkChoice, layer: Image, volume: Volume) -> None:
        """Audit a network on a layer."""
        self._audited, self.verdict.value, self.explain.enabled = None, "", False
        self.legend.value = ""
        self._maps.clear()
        self.run(lambda: _audit(choice, volume, layer), self._show_verdict, "Loading the network")

    def _show_verdict(self, audited: _Audited) -> None:
        self._audited = audited
        self.verdict.value = audit_html(audited.audit) + _note(audited)
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
        self._maps.show(maps, audited.layer, audited.axis)
        self.legend.value = (
            f"<p>Slice {maps.z}: red adds to the answer, blue takes from it. By {maps.caption}.</p>"
        )

    def _end(self, message: str) -> None:
        super()._end(message)
        self.explain.enabled = self._audited is not None


def _note(audited: _Audited) -> str:
    """Say which parts of the audited network were random."""
    if missing := audited.network.missing:
        return (
            f"<p>The file of weights lacks {escape(', '.join(missing))}, which were random in this audit.</p>"
        )
    if audited.random:
        what = (
            "The network was"
            if audited.random == ("*",)
            else f"Untrained parts ({escape(', '.join(audited.random))}) were"
        )
        return f"<p>{what} random in this audit; for a verdict on trained answers, train it.</p>"
    return ""


def _audit(choice: NetworkChoice, volume: Volume, layer: Image) -> _Audited:
    network = choice.load()
    volume = reslice(volume, network.reading.plane)
    found = audit(
        network,
        volume,
    )
    return _Audited(found, network, random_parts(choice, network), volume, layer)
