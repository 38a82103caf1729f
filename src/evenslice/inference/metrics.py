"""How good a segmentation is, on whole volumes: overlap, surfaces, and the objects between boundaries.

With n_ij the number of a volume's voxels of class i that were predicted as class j (the confusion matrix):

    Dice_c = 2 n_cc / (sum_j n_cj + sum_j n_jc)        IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)

A class that is neither in the labels nor in the prediction of a volume has no figure there (NaN). The figure of several
volumes is the mean over those that have one; the mean over classes leaves out class 0, the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from evenslice._core import ConfigError, ModelError, needs_extra
from evenslice.inference.prediction import predict
from evenslice.inference.ready_network import ReadyNetwork
from evenslice.networks import predicted_classes
from evenslice.neutralizing import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from evenslice.volumes import LabelledVolume

    Floats = NDArray[np.float64]

__all__ = ["Scores", "VolumeScores", "evaluate", "object_scores", "surface_scores"]

LARGEST_SURFACE = 2**26
"""Voxels of the largest volume whose surfaces are compared; that takes up to 64 bytes a voxel."""

PERCENTILE = 95


@dataclass(frozen=True)
class VolumeScores:
    """The figures of one volume with C classes; NaN where there is none.

    Attributes:
        name: which volume.
        confusion: (C, C) voxels by their class (row) and their predicted class (column).
        hd95: (C,) see ``surface_scores``; NaN for the background and where surfaces were not compared.
        surface_dice: (C,) likewise.
        objects: (3,) adapted Rand error, split and merge, see ``object_scores``: the means over slices; NaN where
            class 1 is no boundary.
        spacing: voxel size along z, y, x by which distances were measured; 1 where the volume states none.
        unit: of the spacing; "voxel" where the volume states no spacing, None where it states no unit.
    """

    name: str
    confusion: NDArray[np.int64]
    hd95: Floats
    surface_dice: Floats
    objects: Floats
    spacing: tuple[float, float, float]
    unit: str | None

    @property
    def dice(self) -> Floats:
        """Dice of each class (C,), 0..1."""
        hits, sizes = self._counts()
        return _ratio(2 * hits, sizes)

    @property
    def iou(self) -> Floats:
        """Intersection over union of each class (C,), 0..1."""
        hits, sizes = self._counts()
        return _ratio(hits, sizes - hits)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values; lists are by class."""
        return {
            "name": self.name,
            "dice": self.dice.tolist(),
            "iou": self.iou.tolist(),
            "hd95": self.hd95.tolist(),
            "surface_dice": self.surface_dice.tolist(),
            **_objects_dict(self.objects),
            "confusion": self.confusion.tolist(),
            "spacing": list(self.spacing),
            "unit": self.unit,
        }

    def _counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each class the voxels that are right, and those of the labels plus those of the prediction."""
        return self.confusion.diagonal(), self.confusion.sum(axis=0) + self.confusion.sum(axis=1)


@dataclass(frozen=True)
class Scores:
    """The figures of a network on several volumes, and their means.

    Attributes:
        volumes: those of each volume, at least one.
    """

    volumes: tuple[VolumeScores, ...]

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes 1..C-1."""
        return _mean_class(self._mean("dice"))

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes 1..C-1."""
        return _mean_class(self._mean("iou"))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, as ``result.json`` holds them.

        ``dice``, ``iou``, ``hd95`` and ``surface_dice`` have their ``mean`` over the classes 1..C-1 and
        ``per_class``; there is no ``hd95`` over volumes that are measured in different units. ``confusion`` is the sum
        over the volumes; ``volumes`` lists the figures of each.
        """
        figures = {name: self._mean(name) for name in ("dice", "iou", "hd95", "surface_dice")}
        return {
            **{
                name: {"mean": _mean_class(values), "per_class": values.tolist()}
                for name, values in figures.items()
            },
            **_objects_dict(self._mean("objects")),
            "confusion": np.sum([volume.confusion for volume in self.volumes], axis=0).tolist(),
            "volumes": [volume.to_dict() for volume in self.volumes],
        }

    def _mean(self, name: str) -> Floats:
        values = _nanmean([getattr(volume, name) for volume in self.volumes])
        one_unit = len({volume.unit for volume in self.volumes}) == 1
        return values if one_unit or name != "hd95" else np.full_like(values, np.nan)


def evaluate(  # noqa: PLR0913  # all but three arguments have defaults and names
    model: nn.Module,
    parts: Sequence[LabelledVolume],
    *,
    classes: int,
    slices: int | None = None,
    step: int = 1,
    boundaries: bool = False,
    surfaces: bool = True,
    most_slices: int | None = None,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Scores:
    """Predict whole volumes slice by slice and compare them with their labels.

    The network itself is left as it is; a frozen copy runs.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x); for two classes, one channel will do. What
            ``neutralize`` recorded on it says how slices are scaled.
        parts: volumes with their labels and scaling, at least one.
        classes: C, the number of classes, 2 or more; labels are 0..C-1.
        slices: N, odd; by default as many as ``neutralize`` recorded, else 3.
        step: distance between neighbouring slices of a window.
        boundaries: compare the objects too, whose boundaries class 1 is.
        surfaces: compare the surfaces too, of volumes up to ``LARGEST_SURFACE`` voxels. A volume's labels and
            prediction are then held in memory.
        most_slices: look at no more than so many slices, spread evenly over all volumes, and at one more for each class
            that they do not seem to hold; not with ``surfaces``.
        tile: as ``predict`` takes it, like ``batch``.
        batch: windows in one pass of the network.
        device: "auto" (a GPU if there is one) or a PyTorch device name.
        dtype: "auto" (bfloat16 where the hardware has it), "bfloat16" or "float32".

    Raises:
        VolumeError: a volume cannot be read or predicted, or has fewer slices than a window.
        ModelError: the network refuses the windows, or does not give as many classes.
        ConfigError: an option out of range.
        MissingExtraError: a package of the extra ``train`` is missing.

    Example: labels that say which voxels are bright, and a network that finds these.
        >>> import torch
        >>> from evenslice.volumes import ClassIndex, LabelledVolume
        >>> from evenslice.volumes import open_volume
        >>> from evenslice.volumes import Scaling
        >>> image = np.random.default_rng(0).random((4, 32, 32))
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> labels = open_volume((image > 0.5).astype(np.int64))
        >>> index = ClassIndex(np.array([2048, 2048]), ())
        >>> part = LabelledVolume("noise", open_volume(image), labels, Scaling(0, 1), index)
        >>> evaluate(network, [part], classes=2, device="cpu", dtype="float32").mean_dice
        1.0
    """
    if not parts:
        raise ConfigError("no volume to evaluate on was given; at least one is needed")
    if most_slices is not None and (most_slices < 1 or surfaces):
        raise ConfigError(f"most_slices = {most_slices}: must be at least 1, and surfaces need all slices")
    record = record_of(model)
    slices = slices or (record.slices if record else 3)
    network = ReadyNetwork(model, slices=slices, device=device, dtype=dtype)
    run = partial(predict, network, slices=slices, step=step, tile=tile, batch=batch)
    chosen = _choose_slices(parts, most_slices)
    return Scores(
        tuple(
            _evaluate_volume(
                partial(run, part.volume, scaling=part.scaling, centres=centres),
                part,
                classes,
                boundaries=boundaries,
                surfaces=surfaces,
            )
            for part, centres in zip(parts, chosen, strict=True)
        )
    )


def _choose_slices(parts: Sequence[LabelledVolume], most: int | None) -> list[list[int]]:
    """Choose slices that lie evenly when the volumes are laid end to end: for each volume, ascending.

    Of each foreground class that is known to lie in other slices alone, the slice that seems to hold the most is added.
    """
    depths = [len(part.volume) for part in parts]
    total, starts = sum(depths), np.cumsum([0, *depths[:-1]])
    count = total if most is None else min(most, total)
    chosen = set(((np.arange(count) + 0.5) * total // count).astype(int).tolist())
    for samples in zip(*(part.index.positions for part in parts), strict=True):
        slices = [
            start + positions // math.prod(part.volume.shape[1:])
            for part, start, positions in zip(parts, starts, samples, strict=True)
        ]
        held = np.bincount(np.concatenate(slices), minlength=total)
        if held.any() and not held[list(chosen)].any():
            chosen.add(int(held.argmax()))
    return [
        sorted(place - start for place in chosen if start <= place < start + depth)
        for start, depth in zip(starts.tolist(), depths, strict=True)
    ]


def _evaluate_volume(
    run: Callable[[], Iterator[tuple[int, Tensor]]],
    part: LabelledVolume,
    classes: int,
    *,
    boundaries: bool,
    surfaces: bool,
) -> VolumeScores:
    volume = part.volume
    surfaces = surfaces and volume.size <= LARGEST_SURFACE
    spacing = volume.spacing or (1.0, 1.0, 1.0)
    kept = np.empty((2, *volume.shape) if surfaces else 0, np.min_scalar_type(classes - 1))
    confusion = np.zeros((classes, classes), np.int64)
    objects = []
    for z, output in run():
        truth, predicted = part.labels[z], _classes(output, classes)
        confusion += _confusion(truth, predicted, classes)
        if boundaries:
            objects.append(object_scores(truth == 1, predicted == 1))
        if surfaces:
            kept[:, z] = truth, predicted
    distances = np.full((classes, 2), np.nan)
    if surfaces:
        distances[1:] = [surface_scores(kept[0] == c, kept[1] == c, spacing) for c in range(1, classes)]
    return VolumeScores(
        name=part.name,
        confusion=confusion,
        hd95=distances[:, 0],
        surface_dice=distances[:, 1],
        objects=_nanmean(objects or [(np.nan,) * 3]),
        spacing=spacing,
        unit=volume.unit if volume.spacing else "voxel",
    )


def surface_scores(
    labels: ArrayLike,
    predicted: ArrayLike,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tolerance: float | None = None,
) -> tuple[float, float]:
    """Compare the surfaces of two masks (z, y, x): what MONAI takes for their edges, by its distances.

    Args:
        labels: where the class is.
        predicted: where it is predicted.
        spacing: voxel size along z, y, x.
        tolerance: distance up to which a surface counts as found; by default the larger voxel size along y and x.

    Returns:
        HD95, the 95th percentile of the distances from a surface's voxels to the other surface, the larger of the two
        directions; the diagonal of the volume, which no distance exceeds, where one of the masks is empty; NaN where both
        are.
        Surface Dice, the share of the voxels of both surfaces that are within the tolerance of the other (Nikolov et
        al., arXiv 1809.04430), 0..1; NaN where both masks are empty.

    Raises:
        MissingExtraError: MONAI is not installed.

    Example:
        >>> mask = np.zeros((8, 8, 8), bool)
        >>> mask[2:6, 2:6, 2:6] = True
        >>> surface_scores(mask, np.roll(mask, 2, axis=0), spacing=(3, 1, 1))
        (6.0, 0.5)
    """
    with needs_extra("train", "comparing surfaces"):
        from monai.metrics import get_mask_edges

    masks = np.asarray(predicted, bool), np.asarray(labels, bool)
    if not all(mask.any() for mask in masks):
        neither = not any(mask.any() for mask in masks)
        return (
            (np.nan, np.nan) if neither else (math.dist(np.multiply(masks[0].shape, spacing), (0, 0, 0)), 0.0)
        )
    first, second = get_mask_edges(*masks)
    # MONAI searches a tree here, which takes hours where a prediction is noise; the transform takes the same for all.
    distances = [
        distance_transform_edt(~near, sampling=spacing)[far]
        for near, far in ((first, second), (second, first))
    ]
    limit = max(spacing[1:]) if tolerance is None else tolerance
    return (
        float(max(np.percentile(distance, PERCENTILE) for distance in distances)),
        float(np.mean(np.concatenate(distances) <= limit)),
    )


def object_scores(labels: ArrayLike, predicted: ArrayLike) -> tuple[float, float, float]:
    """Compare the objects that boundaries separate in a slice, by scikit-image.

    Objects are the connected regions (by edges, not corners) off the boundary. Those predicted are grown until
    they meet, so that a thick boundary costs nothing by itself; pixels on the boundary of the labels do not count.

    Args:
        labels: (y, x), True on the boundary.
        predicted: (y, x), True where the boundary is predicted.

    Returns:
        The adapted Rand error, 0..1 (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142), and the two parts of
        the variation of information in bits (Meila 2007, doi:10.1016/j.jmva.2006.11.013): what the prediction splits
        and what it merges. All NaN where the labels have no object of two pixels.

    Raises:
        MissingExtraError: scikit-image is not installed.

    Example: two objects, of which the prediction makes one.
        >>> boundary = np.zeros((8, 9), bool)
        >>> boundary[:, 4] = True
        >>> error, split, merge = object_scores(boundary, np.zeros((8, 9), bool))
        >>> round(error, 2), split, merge
        (0.34, 0.0, 1.0)
    """
    with needs_extra("train", "comparing objects"):
        from skimage.measure import label
        from skimage.metrics import adapted_rand_error, variation_of_information
        from skimage.segmentation import expand_labels

    truth = label(~np.asarray(labels, bool), connectivity=1)
    if not np.bincount(truth.ravel())[1:].max(initial=0) > 1:
        return (np.nan,) * 3
    found = label(~np.asarray(predicted, bool), connectivity=1)
    found = expand_labels(found, distance=sum(found.shape))
    with np.errstate(invalid="ignore"):  # the precision of objects of a single pixel each, which is not used
        error, _, _ = adapted_rand_error(truth, found, ignore_labels=(0,))
    split, merge = variation_of_information(truth, found, ignore_labels=(0,))
    return float(error), float(split), float(merge)


def _classes(output: Tensor, classes: int) -> NDArray[np.int64]:
    """Return the predicted class map (y, x) of logits (channels, y, x)."""
    channels = len(output)
    if channels != classes and (channels, classes) != (1, 2):
        raise ModelError(
            f"the network gives {channels} classes, the labels have {classes}; build it with classes={classes}"
        )
    return predicted_classes(output, dim=0).cpu().numpy()


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    pairs = np.bincount((truth * classes + predicted).ravel(), minlength=classes**2)
    return pairs.reshape(classes, classes)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> Floats:
    """Divide; NaN where the denominator is 0."""
    quotient = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _nanmean(rows: Sequence[ArrayLike]) -> Floats:
    """Return the mean over the rows of each column, without those that are NaN; NaN where all are."""
    values = np.array(rows, dtype=np.float64)
    valid = ~np.isnan(values)
    return _ratio(np.where(valid, values, 0).sum(axis=0), valid.sum(axis=0))


def _mean_class(values: Floats) -> float:
    return float(_nanmean(values[1:, None].tolist())[0])


def _objects_dict(objects: Floats) -> dict[str, Any]:
    error, split, merge = objects.tolist()
    return {"adapted_rand_error": error, "variation_of_information": {"split": split, "merge": merge}}
