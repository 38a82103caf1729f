"""Windows as pictures: each slice in gray, over it in red what adds to the answer and in blue what takes from it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.style import audit_colour
from evenslice.report.base.wording import one_line, percent, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.results import AuditResult

ADDS, TAKES = "#ff5a1f", "#2b8cff"
"""Colours of what adds to an answer and of what takes from it."""

SMOOTHING: Final = 2.0
"""Standard deviation in pixels by which maps are smoothed before they are shown."""

MAX_PIXELS: Final = 192
"""Longest side of a picture; larger slices are downscaled by averaging."""


LINES: Final = {
    "gradient": "gradient: how sensitive the answer is to each pixel; it does not tell which slice holds the evidence",
    "input_x_gradient": "input x gradient: sensitivity times brightness; it does not tell which slice holds the evidence",
    "integrated_gradients": "integrated gradients: what each pixel adds to the answer (or takes from it), compared with {}",
    "smoothgrad": "smoothgrad: mean sensitivity under noise; it does not tell which slice holds the evidence",
    "gradient_shap": "gradient SHAP: what each pixel adds to the answer (or takes from it), compared with uniform grays",
    "occlusion": "replacement: how the answer changes, and where, when a slice is replaced by {}",
}
"""What a map by each method can tell."""

IN_PLACE: Final = {
    ("integrated_gradients", "middle"): "the middle slice in place of all",
    ("occlusion", "middle"): "the middle one",
}


@dataclass(frozen=True)
class Row:
    """One window in the audit with index ``audit``.

    For each of the N slices: its offset, its image (y, x), an overlay (y, x, 4) whose opacity grows with the map, and its
    share of the window's map.
    """

    audit: int
    name: str
    offsets: tuple[int, ...]
    images: tuple[NDArray[np.uint8], ...]
    overlays: tuple[NDArray[np.uint8], ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One window, in every audit that has it as an example; all maps are on one scale, and ``caption`` says what they tell."""

    title: str
    rows: tuple[Row, ...]
    caption: str


def map_line(method: str, baseline: str | None) -> str:
    """Return a method's name and what a map by it can tell.

    Example:
        >>> map_line("occlusion", "middle")
        'replacement: how the answer changes, and where, when a slice is replaced by the middle one'
    """
    return LINES[method].format(IN_PLACE.get((method, str(baseline)), "the mean gray of the window"))


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
    """Draw each example window with its map, one figure for each window."""
    return [
        _example_figure(panel, f"example-{number}")
        for number, panel in enumerate(example_panels(audits), start=1)
    ]


def _panel(audits: Sequence[AuditResult], place: tuple[int, ...], found: Sequence[tuple[int, int]]) -> Panel:
    volume, z, y, x = place
    rows = [
        (index, audits[index].name, audits[index].offsets, examples.images[e], examples.maps[e])
        for index, e in found
        for examples in [audits[index].examples]
    ]
    lines = [_line_of(audits[index]) for index, _ in found]
    return Panel(
        f"volume {volume + 1}, z = {z}, y = {y}, x = {x}", _rows(rows), "; ".join(dict.fromkeys(lines))
    )


def _line_of(audit: AuditResult) -> str:
    run = audit.run
    return map_line(*run.maps) if run.maps else f"absolute attribution by {run.method.replace('_', ' ')}"


def _rows(
    windows: Sequence[tuple[int, str, tuple[int, ...], NDArray[np.uint8], NDArray[Any]]],
) -> tuple[Row, ...]:
    """Colour windows on one scale; each is given as audit, name, offsets, images and maps (N, y, x)."""
    shrunk = [np.stack([_shrink(layer) for layer in smoothed(maps)]) for *_, maps in windows]
    top = max(float(np.quantile(np.abs(maps), 0.995)) for maps in shrunk)
    return tuple(
        Row(
            audit=index,
            name=name,
            offsets=offsets,
            images=tuple(_shrink(image) for image in images),
            overlays=tuple(_colour(layer / top if top > 0 else layer) for layer in heat),
            shares=map_shares(maps),
        )
        for (index, name, offsets, images, maps), heat in zip(windows, shrunk, strict=True)
    )


def smoothed(maps: NDArray[Any]) -> NDArray[np.float32]:
    """Smooth maps (N, y, x) for the eye: pixel by pixel, what adds and what takes away lie too close together to be seen."""
    known = np.nan_to_num(maps).astype(np.float32)  # Pillow does not know half precision
    return gaussian_filter(known, (0, SMOOTHING, SMOOTHING))


def map_shares(maps: NDArray[Any]) -> tuple[float, ...]:
    """Return the part of the absolute smoothed maps that each slice gets; 0 for all where nothing in the window matters.

    Smoothed, since the noise of single pixels is spread by the stem, whatever the evidence (docs/planted-evidence.md).
    """
    sums = np.abs(smoothed(maps)).sum(axis=(1, 2), dtype=np.float64)
    return tuple((sums / max(sums.sum(), np.finfo(np.float64).tiny)).tolist())


def _shrink(picture: NDArray[Any]) -> NDArray[Any]:
    """Downscale a picture by averaging until its longest side is at most ``MAX_PIXELS``."""
    height, width = picture.shape
    scale = MAX_PIXELS / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _colour(heat: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour a map of -1..1: from blue over transparent to red."""
    heat = np.clip(heat, -1, 1)
    colours = np.where(heat[..., None] > 0, to_rgba(ADDS), to_rgba(TAKES))
    colours[..., 3] = np.abs(heat) ** 0.7
    return (255 * colours).round().astype(np.uint8)


def _example_figure(panel: Panel, name: str) -> Drawing:
    columns = max(len(row.offsets) for row in panel.rows)
    cell = min(3.2, WIDTH / columns)
    figure = Figure(figsize=(cell * columns, 0.1 + (cell + 0.4) * len(panel.rows)), layout="constrained")
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
        f"Each slice of one window: red adds to the answer, blue takes from it, on one scale; the number above a slice is its "
        f"share. By {panel.caption}.",
        figure,
    )


def explanation_html(
    title: str,
    caption: str,
    offsets: tuple[int, ...],
    images: NDArray[np.uint8],
    maps: NDArray[np.float32],
) -> str:
    """Return a window (N, y, x) and its maps as a picture for a notebook."""
    figure = _example_figure(Panel(title, _rows([(0, title, offsets, images, maps)]), caption), "").figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    reading = f"{title}: red adds to the answer, blue takes from it. By {caption}."
    return f'<figure><img alt="" src="data:image/png;base64,{data}"><figcaption>{escape(reading)}</figcaption></figure>'
