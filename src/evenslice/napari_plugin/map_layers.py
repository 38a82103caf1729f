"""Layers that explain a slice: what each offset adds to the answer or takes from it, and what reversing the window changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.napari_plugin.layers import mark, placement

if TYPE_CHECKING:
    from napari.layers import Image, Layer
    from napari.viewer import Viewer

    from evenslice.auditing import Explanation

__all__ = ["MapLayers"]

COLOURS = {"adds": "red", "takes": "blue"}
"""Of what adds to the answer and what takes from it, as in the report."""
BRIGHTEST = 99.5  # percentile of the absolute maps of all offsets that is shown at full brightness
CHANGED = "#ffd400"
SHADE = 0.75
"""How much a layer behind the maps darkens the slice, on which bright tissue would leave no colour to be seen."""


class MapLayers:
    """The layers that show the maps of one slice at a time; new ones replace the old.

    Args:
        viewer: where they are shown.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._shown: list[Layer] = []

    def show(self, maps: Explanation, layer: Image, axis: int) -> None:
        """Show maps on their slice of a layer.

        Args:
            maps: of a slice of the layer's volume.
            layer: the layer (z, y, x).
            axis: of the layer, along which slices follow one another.
        """
        self.clear()
        first = list(maps.origin)
        first.insert(axis, maps.z)
        where: dict[str, Any] = placement(layer, first) | {"metadata": mark(slice=maps.z)}
        active = self._viewer.layers.selection.active
        shade = self._viewer.add_image(
            np.zeros_like(np.expand_dims(maps.maps[0], axis)),
            name="shade",
            contrast_limits=(0, 1),
            blending="translucent_no_depth",
            opacity=SHADE,
            **where,
        )
        self._shown.append(shade)
        brightest = max(float(np.percentile(np.abs(maps.maps), BRIGHTEST)), float(np.finfo(np.float32).tiny))
        for offset, found in zip(maps.offsets, maps.maps, strict=True):
            if not found.any():
                continue  # as for the middle slice, if neighbours are compared with it
            for sign, (name, colour) in zip((1, -1), COLOURS.items(), strict=True):
                shown = self._viewer.add_image(
                    np.expand_dims(np.maximum(sign * found, 0), axis),
                    name=f"{offset:+d} {name}" if offset else f"0 {name}",
                    colormap=colour,
                    contrast_limits=(0, brightest),
                    blending="additive",
                    **where,
                )
                self._shown.append(shown)
        if maps.change is not None:
            shown = self._viewer.add_labels(
                np.expand_dims(maps.change.astype(np.uint8), axis),
                name="changed by reversing",
                colormap={1: CHANGED, None: "transparent"},
                opacity=0.6,
                visible=False,
                **where,
            )
            self._shown.append(shown)
        self._viewer.layers.selection.active = active

    def clear(self) -> None:
        """Remove the layers that are still there."""
        for layer in self._shown:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._shown.clear()
