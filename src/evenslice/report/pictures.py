"""Pictures of pages: windows with what each pixel adds to the answer, and test slices with the outlines of a prediction."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageColor
from scipy.ndimage import find_objects, gaussian_filter, generate_binary_structure, morphological_gradient

from evenslice.report.style import AUDIT_COLOURS
from evenslice.report.tables import percent, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.results import AuditResult, ExampleSlice, StudyResults, VolumeAuditResult

ADDS, TAKES = (255, 90, 31), (43, 140, 255)
"""Colours (red, green, blue) of what adds to an answer and of what takes from it."""

LABELLED, PREDICTED, BOTH = (0, 194, 255), (255, 140, 26), (255, 255, 255)
"""Colours of outlines: of the labels only, of the prediction only, and of both."""

SMOOTHING: Final = 2.0  # standard deviation in pixels by which maps are smoothed before they are shown
MAX_PIXELS: Final = 192  # longest side of a slice; larger ones are downscaled by averaging
SIDE: Final = 192  # pixels along the longer side of outlines, at least
ROOM, WIDE_ROOM = 12, 0.15  # pixels shown around the foreground, at least, and part of its longer side

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
class Picture:
    """A slice under a layer of colour and opacity, as data URIs; its label, and its height, where its width is 100."""

    label: str
    image_uri: str
    layer_uri: str
    height: float

    @classmethod
    def of(cls, label: str, image: NDArray[np.uint8], layer: NDArray[np.uint8]) -> Picture:
        """Make a picture of a slice (y, x) and a layer (y, x, 4)."""
        height, width = image.shape
        return cls(label, data_uri(image), data_uri(layer), 100.0 * height / width)


@dataclass(frozen=True)
class Strip:
    """Pictures of one audit or arm: its name and the index of its colour."""

    name: str
    colour: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Panel:
    """One example: its strips beside one another, all on one scale, and what they show."""

    title: str
    strips: tuple[Strip, ...]
    caption: str


def image_names(panels: Sequence[Panel]) -> dict[str, tuple[str, float]]:
    """Return the name and the height of each slice in panels by its data URI, so that a page holds it once."""
    pictures = [picture for panel in panels for strip in panel.strips for picture in strip.pictures]
    heights = {picture.image_uri: picture.height for picture in pictures}
    return {uri: (f"picture-{n}", height) for n, (uri, height) in enumerate(heights.items(), start=1)}


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture, gray (y, x) or with opacity (y, x, 4), as a data URI in WebP format."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=75, alpha_quality=60, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def map_line(method: str, baseline: str | None) -> str:
    """Return a method's name and what a map by it can tell.

    Example:
        >>> map_line("occlusion", "middle")
        'replacement: how the answer changes, and where, when a slice is replaced by the middle one'
    """
    return LINES[method].format(IN_PLACE.get((method, str(baseline)), "the mean gray of the window"))


def window_panels(audits: Sequence[AuditResult]) -> list[Panel]:
    """Return the example windows of all audits; one that several audits have is in one panel."""
    places: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for index, audit in enumerate(audits):
        for e, position in enumerate(audit.examples.position.tolist()):
            volume = int(audit.examples.volume[e])
            content = audit.run.volumes[volume].fingerprint if volume < len(audit.run.volumes) else ""
            places.setdefault((volume, *position, content), []).append((index, e))
    return [_window_panel(audits, place, found) for place, found in places.items()]


def _window_panel(
    audits: Sequence[AuditResult], place: tuple[Any, ...], found: Sequence[tuple[int, int]]
) -> Panel:
    volume, z, y, x = place[:4]
    examples = [(audits[index].examples.images[e], audits[index].examples.maps[e]) for index, e in found]
    strips = _coloured(examples, [audits[index].offsets for index, _ in found])
    lines = dict.fromkeys(_line_of(audits[index]) for index, _ in found)
    return Panel(
        f"volume {volume + 1}, z = {z}, y = {y}, x = {x}",
        tuple(
            Strip(audits[index].name, index, pictures)
            for (index, _), pictures in zip(found, strips, strict=True)
        ),
        "; ".join(lines),
    )


def _line_of(audit: AuditResult) -> str:
    run = audit.run
    return map_line(*run.maps) if run.maps else f"absolute attribution by {run.method.replace('_', ' ')}"


def _coloured(
    windows: Sequence[tuple[NDArray[np.uint8], NDArray[Any]]], offsets: Sequence[tuple[int, ...]]
) -> list[tuple[Picture, ...]]:
    """Colour windows, each given as slices and maps (N, y, x), on one scale."""
    shrunk = [np.stack([_shrink(layer) for layer in smoothed(maps)]) for _, maps in windows]
    top = max(float(np.quantile(np.abs(maps), 0.995)) for maps in shrunk)
    return [
        tuple(
            Picture.of(
                f"{signed(k)}: {percent(share)}", _shrink(image), _colour(layer / top if top > 0 else layer)
            )
            for k, share, image, layer in zip(own, map_shares(maps), images, heat, strict=True)
        )
        for (images, maps), heat, own in zip(windows, shrunk, offsets, strict=True)
    ]


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
    colours = np.where(heat[..., None] > 0, ADDS, TAKES)
    opacity = (255 * np.abs(heat) ** 0.7).round()
    return np.concatenate([colours, opacity[..., None]], axis=-1).astype(np.uint8)


def explanation_html(
    title: str, caption: str, offsets: tuple[int, ...], images: NDArray[np.uint8], maps: NDArray[np.float32]
) -> str:
    """Return a window (N, y, x) and its maps as pictures for a notebook."""
    (pictures,) = _coloured([(images, maps)], [offsets])
    reading = f"{title}: red adds to the answer, blue takes from it. By {caption}."
    shown = "".join(
        f'<td style="text-align: center"><svg style="width: min(192px, {90 // len(pictures)}vw)"'
        f' viewBox="0 0 100 {picture.height:.4g}">'
        + "".join(
            f'<image width="100" height="{picture.height:.4g}" preserveAspectRatio="none" href="{uri}"/>'
            for uri in (picture.image_uri, picture.layer_uri)
        )
        + f"</svg><br>{escape(picture.label)}</td>"
        for picture in pictures
    )
    return f"<table><tr>{shown}</tr></table><p>{escape(reading)}</p>"


def outlined_panels(results: StudyResults) -> list[Panel]:
    """Return a test slice of each comparison of a study, as segmented by the first run of each arm that kept one."""
    panels = []
    for item in results.comparisons:
        strips = []
        for arm in item.arms:
            run = next((run for run in results.runs_of(item, arm.arm) if run.example is not None), None)
            if run is not None and run.example is not None:
                example = around_foreground(run.example)
                picture = Picture.of("", example.image, outlines(example))
                strips.append(Strip(arm.arm, results.arms.index(arm.arm), (picture,)))
        if strips:
            panels.append(Panel(item.title, tuple(strips), ""))
    return panels


def slice_panels(result: VolumeAuditResult) -> list[Panel]:
    """Return the slices where the answers of an audit of whole volumes differ most: intact, flipped back, difference."""
    panels = []
    for axis in result.axes:
        for found in axis.worst:
            volume = f"volume {found.volume + 1}, " if len(result.volumes) > 1 else ""
            title = f"Flipped along {axis.axis}: {volume}{axis.axis} = {found.position}, {found.differing:,} voxels"
            layers = {
                "intact": _class_layer(found.intact),
                "flipped back": _class_layer(found.flipped),
                "difference": _layer(found.intact != found.flipped, ADDS),
            }
            image = _shrink(found.image)
            size = image.shape[::-1]
            pictures = [
                Picture.of(
                    label, image, np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.NEAREST))
                )
                for label, layer in layers.items()
            ]
            panels.append(Panel(title, (Strip(axis.axis, 0, tuple(pictures)),), ""))
    return panels


def _class_layer(classes: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour classes or object ids (y, x) but 0, each in one of the colours of audits."""
    layer = np.zeros((*classes.shape, 4), np.uint8)
    for label in np.unique(classes[classes != 0]).tolist():
        layer[classes == label] = (*ImageColor.getrgb(AUDIT_COLOURS[label % len(AUDIT_COLOURS)][1]), 150)
    return layer


def _layer(where: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.where(where[..., None], np.array([*colour, 220], np.uint8), np.uint8(0))


def around_foreground(example: ExampleSlice) -> ExampleSlice:
    """Crop an example to the classes above 0 of its labels, with some room; all of it if it has none.

    Example:
        >>> from evenslice.results import ExampleSlice
        >>> labels = np.zeros((200, 100), np.uint8)
        >>> labels[80:120, 10:40] = 1
        >>> around_foreground(ExampleSlice(labels, labels, labels)).image.shape
        (64, 52)
    """
    boxes = find_objects((example.labels > 0).astype(np.uint8))
    if not boxes:
        return example
    room = max(ROOM, round(WIDE_ROOM * max(part.stop - part.start for part in boxes[0])))
    kept = tuple(slice(max(0, part.start - room), part.stop + room) for part in boxes[0])
    names = ("image", "labels", "predicted")
    return replace(example, **{name: getattr(example, name)[kept] for name in names})


def outlines(example: ExampleSlice) -> NDArray[np.uint8]:
    """Draw the class boundaries of the labels and of the prediction: (y, x, 4) uint8, transparent elsewhere."""
    scale = max(1, -(-SIDE // max(example.image.shape)))
    labelled, predicted = (
        _boundaries(np.kron(classes, np.ones((scale, scale), np.uint8)))
        for classes in (example.labels, example.predicted)
    )
    layer = np.zeros((*labelled.shape, 4), np.uint8)
    for where, colour in ((labelled, LABELLED), (predicted, PREDICTED), (labelled & predicted, BOTH)):
        layer[where] = [*colour, 255]
    return layer


def _boundaries(classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the pixels on both sides of each class boundary."""
    return np.asarray(morphological_gradient(classes, footprint=generate_binary_structure(2, 1)) != 0)
