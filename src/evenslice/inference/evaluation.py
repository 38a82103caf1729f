"""Evaluate a network on a volume: how well its answers agree with the labels, and what disturbed slices cost.

    scores = evaluate(model, "brain.nii.gz", "labels.nii.gz", stress=True)
    scores.dice, scores.stress.losses[0].asymmetry

The command and the function ``evenslice.evaluate``; ``inference.scoring`` serves training.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ConfigError, json_text, option, package_versions, staged_folder, whole_number
from evenslice.inference.compute import Compute
from evenslice.inference.prediction import choose_tile, tell_rounding, try_network
from evenslice.inference.ready_networks import make_ready
from evenslice.inference.scoring import (
    MOST_SLICES,
    StressedVolume,
    StressTest,
    score_parts,
    stress as measure_stress,
)
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.volumes import (
    ClassIndex,
    LabelledVolume,
    Reading,
    check_tile,
    fingerprint,
    index_classes,
    open_labels,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from evenslice.inference.scoring import Scores
    from evenslice.results import Stress
    from evenslice.volumes import VolumeLike


RESULT_FILES = ("result.json",)
PACKAGES = ("evenslice", "torch", "numpy", "scipy", "monai", "onnxruntime")


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def evaluate(
    model: nn.Module | Callable[..., Any] | Segmenter,
    volume: VolumeLike,
    labels: VolumeLike | None = None,
    *,
    stress: bool = False,
    stress_slices: int | None = None,
    slices: int | None = None,
    surfaces: bool = True,
    tile: tuple[int, int] | None = None,
    seed: int = 0,
    reading: Reading | None = None,
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> Evaluation:
    """Predict a volume slice by slice, compare it with its labels, and measure what disturbed slices cost.

    The network is not changed; a frozen copy of it runs. Every slice is read once.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x); one channel stands for two classes. Slices
            in 0..1 are scaled as ``neutralize`` recorded on it, else by the mean and std that its library states for
            pretrained weights, else not at all. Or any function with such an output, such as one from ``load_onnx``; see
            ``evenslice.inference.BlackBox`` for its input. Or either with its reading.
        volume: the volume, an array (z, y, x), or a path.
        labels: the class of each voxel, whole numbers in an array of the same shape. Optional with ``stress``, which
            then compares with the intact answer.
        stress: disturb the slices of windows: one neighbour, or both, missing (the middle slice in its place), blank
            (0, the darkest intensity), noisy (Gaussian noise of standard deviation 0.1, where intensities are scaled
            to 0..1) or shifted by 8 pixels along x; and the whole window reversed.
        stress_slices: disturb the windows of at most this many slices, spread evenly over the volume; by default 60.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function or the segmenter, else 3.
        surfaces: also compare surfaces, in volumes of up to 2**26 voxels.
        tile: size (y, x) of the in-plane tiles, see ``evenslice.inference.prediction.predict``.
        seed: random seed for the noise of noisy slices, 0 or more.
        reading: how the volume and the labels are read, by default as the segmenter says; with ``instances``, scores
            compare the objects, too.
        compute: where and how the network runs.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite; the labels have another
            shape, or values of no class.
        ModelError: the network rejects the windows, or does not return a map of logits.
        ConfigError: an option is out of range, or there is nothing to compare with.
        MissingExtraError: surfaces or objects are compared, and a package of the extra ``train`` is missing.

    Example: a network that finds bright voxels in the slice before.
        >>> import torch
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> image = np.zeros((8, 32, 32))
        >>> image[:, :, 20:] = 1
        >>> scores = evaluate(network, image, image, stress=True, reading=Reading(intensity=(0, 1)))
        >>> blank = scores.stress.losses[1]
        >>> scores.dice, blank.kind, blank.before.loss.estimate, blank.after.loss.estimate
        (1.0, 'blank', 1.0, 0.0)
    """
    segmenter = as_segmenter(model, slices, reading, labelled=labels is not None)
    segmenter.need_segmentation()
    slices, reading = segmenter.slices, segmenter.reading
    compute.refuse("workers", "scheduler")
    seed = whole_number("seed", seed, least=0)
    values = reading.labels
    if labels is None:
        if not stress:
            raise ConfigError(
                f"nothing to compare the answers with; give {option('labels')}, or {option('stress')}, which "
                "compares with the intact answer"
            )
        values.refuse()
    if stress_slices is not None and not stress:
        raise ConfigError(
            f"{option('stress_slices')}: has no effect without {option('stress')}; give both or neither"
        )
    most = whole_number("stress_slices", MOST_SLICES if stress_slices is None else stress_slices, least=1)
    volume = reading.open(volume)
    stored = None if labels is None else open_labels(labels, [volume])[0]
    network = make_ready(segmenter.network, slices, compute)
    tile = choose_tile(network, volume.shape[1:]) if tile is None else check_tile(tile)
    classes = try_network(network, slices, tile)
    known = None if stored is None else values.class_volume(stored, classes)
    if known is not None:
        index_classes(
            known, classes, keep=0
        )  # so that a value of no class is found before anything is computed
    scaling = reading.fit_scaling(volume)
    run: dict[str, Any] = {
        "step": reading.step,
        "tile": tile,
        "batch": compute.batch,
        "progress": compute.progress,
    }
    tell_rounding(network, volume, scaling, slices=slices, **run)
    scores: Scores | None = None
    if stored is None or known is None:
        stressed: Stress | None = measure_stress(
            network,
            [StressedVolume(volume, scaling)],
            slices=slices,
            most_slices=most,
            seed=seed,
            classes=classes,
            **run,
        )
    else:
        index = ClassIndex(np.zeros(classes, np.int64), ())  # all slices are predicted: none is chosen
        scores = score_parts(
            network,
            [LabelledVolume(volume.path, volume, known, scaling, index, values.background_volume(stored))],
            StressTest([len(volume)], slices, classes, most=most if stress else 0, seed=seed),
            centres=[range(len(volume))],
            boundaries=values.instances is not None,
            surfaces=surfaces,
            **run,
        )
        stressed = scores.stress
    return Evaluation(
        scores=scores,
        stress=stressed,
        model={
            "name": network.name,
            "slices": slices,
            "step": reading.step,
            **network.scaling,
            "device": network.device.type,
            "dtype": str(network.dtype).removeprefix("torch."),
        },
        volume=EvaluatedVolume(
            path=volume.path,
            shape=volume.shape,
            intensity=(scaling.low, scaling.high),
            image=fingerprint(volume),
            labels=None if stored is None else fingerprint(stored),
            labels_path=None if stored is None else stored.path,
            label_options=None if stored is None else values.to_dict(),
            region=volume.region,
            level=volume.level,
            select=dict(volume.select),
            fill=scaling.fill,
        ),
        seed=seed,
        versions=package_versions(PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    )


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
