"""What comparing the answers to whole volumes, intact and flipped, found.

Along each axis, the answer to a volume is compared with the answer to the flipped volume, flipped back. For each class c,

    C_c = 1 - IoU of the voxels of class c in both answers

over all volumes together: a census of these volumes, without sampling. What two runs on the same volume differ by, C0, is
no matter of order and is taken away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from evenslice._core import json_text
from evenslice.results import documents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VolumeVerdict = Literal["symmetric", "balanced", "biased"]
VERDICTS: tuple[VolumeVerdict, ...] = ("symmetric", "balanced", "biased")
"""From best to worst."""

SAME = 1e-6
"""The part of the voxels that may differ in answers that are called symmetric."""

TOLERANCE = 0.05
"""The largest C of answers that are called balanced."""

LEAST_VOXELS = 100
"""Voxels of a class, in either answer, from which on it is judged."""

NAN_PAIR = (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """How one class changes when volumes are flipped; pairs are of the intact volumes and of the flipped ones.

    Attributes:
        label: the class; None for all objects, each of which has to find its partner.
        voxels: number of voxels of the class in either answer.
        change: C, 0..1.
        repeat: C0, the same between two runs on the intact volumes; NaN if they ran once.
        dice: Dice with the labels; NaN without labels.
        surface_dice: surface Dice with the labels, within one voxel; likewise.
    """

    label: int | None
    voxels: int
    change: float
    repeat: float = math.nan
    dice: tuple[float, float] = NAN_PAIR
    surface_dice: tuple[float, float] = NAN_PAIR

    @property
    def excess(self) -> float:
        """C less C0, which is judged."""
        return self.change if math.isnan(self.repeat) else max(0.0, self.change - self.repeat)

    @property
    def judged(self) -> bool:
        """Whether it has voxels enough."""
        return self.voxels >= LEAST_VOXELS


@dataclass(frozen=True, kw_only=True)
class ObjectMatch:
    """Objects of both answers; two are partners if their IoU is above 0.5.

    Attributes:
        partners: number of objects with a partner.
        alone: number of objects without one, in the intact volumes and in the flipped ones.
    """

    partners: int
    alone: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstSlice:
    """A slice across the flipped axis where the answers differ most: voxels (y, x) uint8, and both answers.

    Attributes:
        volume: index of the volume.
        position: index of the slice in the intact volume.
        differing: number of voxels that differ.
        image: the voxels, scaled to 0..255.
        intact: the answer to the intact volume.
        flipped: the answer to the flipped volume, flipped back.
    """

    volume: int
    position: int
    differing: int
    image: NDArray[np.uint8]
    intact: NDArray[np.integer[Any]]
    flipped: NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisChange:
    """What flipping volumes along one axis changes.

    Attributes:
        axis: "z", "y" or "x".
        voxels: number of voxels of all volumes.
        differing: number of those whose answers differ.
        repeat_differing: the same between two runs on the intact volumes.
        classes: the classes, in ascending order.
        objects: the objects; None unless answers number them.
        profiles: for each volume, the part of the foreground of either answer that differs in each slice across the axis;
            NaN where there is none.
        worst: the slices that differ most; not in documents.
    """

    Objects = ObjectMatch
    Slice = WorstSlice

    axis: str
    voxels: int
    differing: int
    repeat_differing: int
    classes: tuple[ClassChange, ...]
    objects: ObjectMatch | None = None
    profiles: tuple[tuple[float, ...], ...] = ()
    worst: tuple[WorstSlice, ...] = field(default=(), metadata=documents.UNWRITTEN)

    @property
    def largest(self) -> ClassChange | None:
        """The judged class that changes most."""
        return max(
            (found for found in self.classes if found.judged), key=lambda one: one.excess, default=None
        )

    @property
    def verdict(self) -> VolumeVerdict:
        """``symmetric``: at most 1e-6 of the voxels differ; ``balanced``: no judged class has a C above .05; ``biased``."""
        if max(0, self.differing - self.repeat_differing) <= SAME * self.voxels:
            return "symmetric"
        return "balanced" if self.largest is None or self.largest.excess <= TOLERANCE else "biased"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class VolumeAuditResult:
    """The result of ``evenslice.audit_volume``.

    Attributes:
        method: name of the method.
        axes: what flipping along each axis changes.
        volumes: path and shape (z, y, x) of each volume.
        swap: classes that change places in a mirror.
        command: the command line; None from Python.
        created: time, ISO 8601.
    """

    method: str
    axes: tuple[AxisChange, ...]
    volumes: tuple[dict[str, Any], ...]
    swap: dict[int, int]
    command: str | None = None
    created: str = ""

    def __repr__(self) -> str:
        found = ", ".join(f"{one.axis}: {one.verdict}" for one in self.axes)
        return f"<{type(self).__name__} of {self.method!r}: {found}>"

    @property
    def verdict(self) -> VolumeVerdict:
        """The worst verdict over all axes."""
        return max((one.verdict for one in self.axes), key=VERDICTS.index)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, in the layout of ``flip.json``."""
        plain = documents.to_plain(self)
        axes = [
            {"verdict": one.verdict, **found} for one, found in zip(self.axes, plain.pop("axes"), strict=True)
        ]
        return {"format": documents.FORMAT, "verdict": self.verdict, "axes": axes, **plain}

    def to_json(self) -> str:
        """Return the result as a JSON document; undefined values are null."""
        return json_text(self.to_dict())
