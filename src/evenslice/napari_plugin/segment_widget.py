"""The widget that segments a volume into a layer of labels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.inference import segment
from evenslice.napari_plugin.job_widget import JobWidget
from evenslice.napari_plugin.layers import mark, placement
from evenslice.napari_plugin.network_choice import random_parts

if TYPE_CHECKING:
    import napari.viewer  # the annotation tells napari to pass its viewer
    from napari.layers import Image
    from napari.utils.events import Event
    from numpy.typing import NDArray

    from evenslice.napari_plugin.network_choice import NetworkChoice
    from evenslice.volumes import Volume

__all__ = ["SegmentWidget"]

IN_MEMORY = 2**30
"""Bytes of labels that are kept in memory; more stay in a temporary file, which goes with the layer."""


class SegmentWidget(JobWidget):
    """Segments the chosen layer, slice by slice, into a layer of labels in the same place.

    Args:
        viewer: the viewer.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "Segment")

    def begin(self, choice: NetworkChoice, layer: Image, volume: Volume) -> None:
        """Segment a layer."""
        self.run(
            lambda: _segment(choice, volume), lambda labels: self._show(labels, layer), "Loading the network"
        )

    def _show(self, labels: _Labels, layer: Image) -> None:
        where = placement(layer)
        self.viewer.add_labels(labels.array, name=f"{layer.name} segmented", metadata=mark(), **where)
        if labels.folder is not None:
            self.viewer.layers.events.removed.connect(partial(_clean_up, labels))
        self.say(f"Done; largest label: {labels.largest}.{_note(labels.random)}")


@dataclass(frozen=True)
class _Labels:
    """Labels.

    Attributes:
        array: (z, y, x).
        largest: the largest of them.
        random: parts of the network that were random.
        folder: the temporary folder they lie in, which is removed with their layer or at the end.
    """

    array: NDArray[Any]
    largest: int
    random: tuple[str, ...]
    folder: tempfile.TemporaryDirectory[str] | None


def _note(random: tuple[str, ...]) -> str:
    """Say which parts of the network were random, as they are until it is trained."""
    if not random:
        return ""
    what = "The network is" if random == ("*",) else f"Parts of the network ({', '.join(random)}) are"
    return f" {what} random; train it before you use these labels."


def _clean_up(labels: _Labels, event: Event) -> None:
    """Remove the folder when the layer of its labels is removed, for napari may hold on to the layer itself."""
    if labels.folder is not None and event.value.data is labels.array:
        labels.folder.cleanup()


def _segment(choice: NetworkChoice, volume: Volume) -> _Labels:
    network = choice.load()
    network.need_all_weights()
    random = random_parts(choice, network)
    folder = tempfile.TemporaryDirectory(prefix="evenslice-", ignore_cleanup_errors=True)
    out = Path(folder.name) / "labels.npy"
    segment(network, volume, out)
    if out.stat().st_size > IN_MEMORY:
        array = np.load(out, mmap_mode="r+")
        return _Labels(array, _largest(array), random, folder)
    with folder:
        array = np.load(out)
    return _Labels(array, _largest(array), random, None)


def _largest(labels: NDArray[Any]) -> int:
    return max(int(plane.max()) for plane in labels)
