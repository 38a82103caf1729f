"""Example windows as pictures: each slice in gray, with its saliency as a colour overlay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.style import audit_colour
from evenslice.report.base.wording import one_line, percent, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.results import AuditResult, ExampleWindows

MAX_PIXELS: Final = 192
"""Longest side of a picture; larger slices are downscaled by averaging."""


@dataclass(frozen=True)
class Row:
    """One window in the audit with index ``audit``.

    For each of the N slices: its offset, its image (y, x), an overlay (y, x, 4) whose opacity grows with the saliency, and
    its share of the window's saliency.
    """

    audit: int
    name: str
    offsets: tuple[int, ...]
    images: tuple[NDArray[np.uint8], ...]
    overlays: tuple[NDArray[np.uint8], ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One place in a volume, in every audit that has it as an example; all saliency is on one scale."""

    title: str
    rows: tuple[Row, ...]


def example_panels(audits: Sequence[AuditResult]) -> list[Panel]:
    """Group the examples of all audits by the place they were taken from, in their order."""
    places: dict[tuple[str, tuple[int, ...]], list[tuple[int, int]]] = {}
    for index, audit in enumerate(audits):
        for e, position in enumerate(audit.examples.position.tolist()):
            volume = int(audit.examples.volume[e])
            key = (_content(audit, volume), (volume, *position))
            places.setdefault(key, []).append((index, e))
    return [_panel(audits, place, found) for (_, place), found in places.items()]


def _content(audit: AuditResult, volume: int) -> str:
    """Return the fingerprint of a volume, which tells apart the volumes of different audits."""
    volumes = audit.run.volumes
    return volumes[volume].fingerprint if volume < len(volumes) else ""


def example_figures(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw each example window with its saliency, one figure for each window."""
    return [
        _example_figure(panel, f"example-{number}")
        for number, panel in enumerate(example_panels(audits), start=1)
    ]


def _panel(audits: Sequence[AuditResult], place: tuple[int, ...], found: Sequence[tuple[int, int]]) -> Panel:
    maps = [_shrunk_maps(audits[index].examples, e) for index, e in found]
    top = max(float(np.quantile(heat, 0.995)) for heat in maps)
    rows = tuple(
        Row(
            audit=index,
            name=audits[index].name,
            offsets=audits[index].offsets,
            images=tuple(_shrink(image) for image in audits[index].examples.images[e]),
            overlays=tuple(_colour(layer / top if top > 0 else layer) for layer in heat),
            shares=tuple(audits[index].examples.saliency[e].sum(axis=(1, 2), dtype=np.float64).tolist()),
        )
        for (index, e), heat in zip(found, maps, strict=True)
    )
    volume, z, y, x = place
    return Panel(f"volume {volume + 1}, z = {z}, y = {y}, x = {x}", rows)


def _shrunk_maps(examples: ExampleWindows, e: int) -> NDArray[np.float64]:
    saliency = np.nan_to_num(examples.saliency[e]).astype(np.float64)  # Pillow does not know half precision
    return np.stack([_shrink(layer) for layer in saliency]).astype(np.float64)


def _shrink(picture: NDArray[Any]) -> NDArray[Any]:
    """Downscale a picture by averaging until its longest side is at most ``MAX_PIXELS``."""
    height, width = picture.shape
    scale = MAX_PIXELS / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _colour(heat: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour a map of 0..1 from red to yellow, and from transparent to opaque."""
    heat = np.clip(heat, 0, 1)
    colours = np.asarray(colormaps["inferno"](0.45 + 0.5 * heat))
    colours[..., 3] = heat**0.7
    return (255 * colours).round().astype(np.uint8)


def _example_figure(panel: Panel, name: str) -> Drawing:
    columns = max(len(row.offsets) for row in panel.rows)
    cell = min(1.9, WIDTH / columns)
    figure = Figure(figsize=(WIDTH, 0.1 + (cell + 0.4) * len(panel.rows)), layout="constrained")
    grid = figure.subplots(len(panel.rows), columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, row in zip(grid, panel.rows, strict=True):
        first = (columns - len(row.offsets)) // 2
        slices = zip(row.offsets, row.images, row.overlays, row.shares, strict=True)
        for axes, (k, image, overlay, share) in zip(line[first:], slices, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.imshow(overlay, interpolation="none")
            axes.set_title(f"{signed(k)}: {percent(share)}", fontsize=9)
        name_above = f"{one_line(row.name)}\n{line[first].get_title(loc='left')}"
        line[first].set_title(name_above, fontsize=9, color=audit_colour(row.audit))
    return Drawing(
        name,
        f"Example: {panel.title}",
        "Each slice of one window with its saliency, all on one scale; the number above a slice is "
        "its share of the window's saliency.",
        figure,
    )
