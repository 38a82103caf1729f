"""Test slices as pictures: the image with the outlines of its labels and of the prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.style import audit_colour
from evenslice.report.base.wording import few_lines, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.results import ExampleSlice, StudyResults

LABELLED, PREDICTED, BOTH = "#00c2ff", "#ff8c1a", "#ffffff"
"""Colours of the outlines: of the labels only, of the prediction only, and of both."""

SIDE: Final = 192  # pixels along the longer side of the outlines, at least
ROOM: Final = 0.15  # around the foreground, of its longer side
LEAST: Final = 24  # pixels of either side that are shown, at least
PANELS: Final = 6  # side by side


@dataclass(frozen=True)
class ArmPicture:
    """A test slice as segmented by one arm.

    Attributes:
        arm: the index of the arm in the study.
        name: its name.
        image: (y, x) uint8.
        outlines: (y, x, 4) uint8, colour and opacity, of the same place with more pixels.
    """

    arm: int
    name: str
    image: NDArray[np.uint8]
    outlines: NDArray[np.uint8]


@dataclass(frozen=True)
class ExamplePanel:
    """A test slice of one comparison as segmented by each arm that kept an example, with its first run."""

    title: str
    pictures: tuple[ArmPicture, ...]


def example_panels(results: StudyResults) -> list[ExamplePanel]:
    """Group the examples of a study by comparison; comparisons without any are left out."""
    panels = []
    for item in results.comparisons:
        pictures = []
        for arm in item.arms:
            run = next((run for run in results.runs_of(item, arm.arm) if run.example is not None), None)
            if run is not None and run.example is not None:
                index, example = results.arms.index(arm.arm), around_foreground(run.example)
                pictures.append(ArmPicture(index, arm.arm, example.image, outlines(example)))
        if pictures:
            panels.append(ExamplePanel(item.title, tuple(pictures)))
    return panels


def around_foreground(example: ExampleSlice) -> ExampleSlice:
    """Crop an example to the classes above 0 of its labels, with some room; all of it if it has none.

    Example:
        >>> from evenslice.results import ExampleSlice
        >>> labels = np.zeros((200, 100), np.uint8)
        >>> labels[80:120, 10:40] = 1
        >>> around_foreground(ExampleSlice(labels, labels, labels)).image.shape
        (52, 42)
    """
    places = np.nonzero(example.labels)
    if not len(places[0]):
        return example
    ends = [(int(where.min()), int(where.max()) + 1) for where in places]
    room = round(ROOM * max(high - low for low, high in ends))
    kept = tuple(
        _widened(low - room, high + room, length)
        for (low, high), length in zip(ends, example.labels.shape, strict=True)
    )
    return replace(
        example, **{name: getattr(example, name)[kept] for name in ("image", "labels", "predicted")}
    )


def _widened(low: int, high: int, length: int) -> slice:
    """Return a range of at least `LEAST` of an axis of a given length, around a range that may exceed the axis."""
    missing = max(0, LEAST - (high - low))
    low, high = low - missing // 2, high + missing - missing // 2
    return slice(max(0, low), min(length, high))


def outlines(example: ExampleSlice) -> NDArray[np.uint8]:
    """Draw the class boundaries of the labels and of the prediction: (y, x, 4) uint8, transparent elsewhere."""
    scale = max(1, -(-SIDE // max(example.image.shape)))
    labelled, predicted = (
        _boundaries(np.kron(classes, np.ones((scale, scale), np.uint8)))
        for classes in (example.labels, example.predicted)
    )
    layer = np.zeros((*labelled.shape, 4), np.uint8)
    for where, colour in (
        (labelled & ~predicted, LABELLED),
        (predicted & ~labelled, PREDICTED),
        (labelled & predicted, BOTH),
    ):
        layer[where] = [*(round(255 * part) for part in to_rgb(colour)), 255]
    return layer


def _boundaries(classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the pixels on both sides of each class boundary."""
    found = np.zeros(classes.shape, np.bool_)
    for axis in (0, 1):
        both = np.moveaxis(found, axis, 0), np.moveaxis(classes, axis, 0)
        differ = both[1][1:] != both[1][:-1]
        both[0][1:] |= differ
        both[0][:-1] |= differ
    return found


def example_figure(panel: ExamplePanel, name: str) -> Drawing:
    """Draw a test slice as segmented by every arm."""
    columns = min(PANELS, len(panel.pictures))
    lines = -(-len(panel.pictures) // columns)
    cell = min(3.2, WIDTH / columns)
    figure = Figure(figsize=(WIDTH, 0.1 + (cell + 0.3) * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture in zip(grid.flat, panel.pictures, strict=False):
        height, width = picture.image.shape
        box = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(picture.image, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=box)
        axes.imshow(picture.outlines, interpolation="none", extent=box)
        axes.set_title(few_lines(picture.name, 22, 3), fontsize=9, color=audit_colour(picture.arm))
    return Drawing(name, f"Example: {one_line(panel.title, 80)}", READING, figure)


READING: Final = (
    "A test slice, cropped around its labelled foreground, with the outlines of the labels (blue) and of each "
    "arm's prediction (orange), from the first run of each arm; white where both coincide."
)
