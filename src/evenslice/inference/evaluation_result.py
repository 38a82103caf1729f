"""The result of an evaluation, and the file that holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from evenslice._core import json_text, staged_folder

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from evenslice.inference.metrics import Scores
    from evenslice.results import Stress

__all__ = ["RESULT_FILES", "EvaluatedVolume", "Evaluation"]

RESULT_FILES = ("result.json",)


@dataclass(frozen=True)
class EvaluatedVolume:
    """A volume that was predicted.

    Attributes:
        path: where it is.
        shape: (z, y, x).
        intensity: the voxel values that became 0 and 1.
        image: its fingerprint.
        labels: that of its labels; None without any.
        labels_path: where they are; likewise.
        label_options: what their values mean, by the names of the options; likewise.
        region: first voxel and one past the last along z, y, x of the file; None for all of it.
        level: the resolution level, 0 the finest.
        select: the index that was picked along each other axis of the file.
        fill: the voxel value that replaced NaN and infinity; None if none was given.
    """

    path: str
    shape: tuple[int, int, int]
    intensity: tuple[float, float]
    image: str
    labels: str | None
    labels_path: str | None = None
    label_options: dict[str, Any] | None = None
    region: tuple[tuple[int, int], ...] | None = None
    level: int = 0
    select: dict[str, int] = field(default_factory=dict)
    fill: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How well a network's answers agree with labels, and what disturbed slices cost.

    Attributes:
        scores: those of the whole volume; None without labels.
        stress: what disturbed slices cost; None if that was not asked for.
        model: name, slices, step, scaling, device and precision of the network.
        volume: the volume.
        seed: random seed of the noise of noisy slices.
        versions: those of the packages.
        created: time, ISO 8601.
        command: the command line; None from Python.
    """

    scores: Scores | None
    stress: Stress | None
    model: dict[str, Any]
    volume: EvaluatedVolume
    seed: int
    versions: dict[str, str]
    created: str
    command: str | None = None

    def __repr__(self) -> str:
        found = "no labels" if self.scores is None else f"Dice {self.dice:.3f}, IoU {self.iou:.3f}"
        stressed = "" if self.stress is None else ", with stress"
        return f"<Evaluation of {self.model['name']!r}: {found}{stressed}>"

    @property
    def dice(self) -> float:
        """Mean Dice of the classes 1..C-1, 0..1; NaN without labels."""
        return float("nan") if self.scores is None else self.scores.mean_dice

    @property
    def iou(self) -> float:
        """Mean intersection over union of the classes 1..C-1, 0..1; NaN without labels."""
        return float("nan") if self.scores is None else self.scores.mean_iou

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, in the layout of ``result.json``.

        The scores have the keys of a training's ``result.json`` (``dice``, ``iou``, ``hd95``, ``surface_dice`` within
        one voxel and ``surface_dice_3`` within three, each with ``mean`` and ``per_class``); without labels, ``dice``
        and ``iou`` are None and the others absent.
        """
        return {
            **({"dice": None, "iou": None} if self.scores is None else self.scores.to_dict()),
            "stress": None if self.stress is None else self.stress.to_dict(),
            "model": self.model,
            "volume": asdict(self.volume),
            "seed": self.seed,
            "command": self.command,
            "versions": self.versions,
            "created": self.created,
        }

    def to_json(self) -> str:
        """Return the result as a JSON document; undefined values are null."""
        return json_text(self.to_dict())

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``result.json`` into a folder, which is created if missing.

        Raises:
            OutputError: the folder holds such a file and ``force`` is not set, or it cannot be written.
        """
        with staged_folder(folder, RESULT_FILES, documents=RESULT_FILES, force=force) as beside:
            self.write(beside)

    def write(self, folder: Path) -> None:
        """Write the file of ``save`` into an existing folder."""
        (folder / "result.json").write_text(self.to_json(), encoding="utf-8")
