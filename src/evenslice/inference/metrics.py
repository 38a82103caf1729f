"""Segmentation metrics of whole volumes: overlap, surface distances, and the objects between boundaries.

Let n_ij be the number of voxels of class i predicted as class j (the confusion matrix of a volume):

    Dice_c = 2 n_cc / (sum_j n_cj + sum_j n_jc)        IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)

A class that the labels of a volume lack but the prediction has counts as 0; one that neither has has no score there (NaN), and
is left out of the mean. So it is in ``results.stress``. The score of several
volumes is the mean over those that have one; the mean over classes excludes class 0, the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from evenslice._core import needs_extra
from evenslice.results import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from evenslice.results import Stress

    Floats = NDArray[np.float64]

__all__ = [
    "Scores",
    "SurfaceScores",
    "VolumeScores",
    "confusion_matrix",
    "nan_mean",
    "object_scores",
    "surface_scores",
]

PERCENTILE = 95  # of surface distances

WIDE = 3
"""The wider tolerance of surface Dice, in voxels."""

ROUNDING = 1e-6
"""By how much of a voxel distances may exceed a tolerance: they are sums of squares of rounded sizes."""


@dataclass(frozen=True)
class VolumeScores:
    """The scores of one volume with C classes; NaN where undefined.

    Attributes:
        name: name of the volume.
        confusion: (C, C) number of voxels by class (row) and predicted class (column).
        hd95: (C,) see ``surface_scores``; NaN for the background and where surfaces were not compared.
        surface_dice: (C,) likewise.
        surface_dice_3: (C,) likewise.
        objects: (3,) adapted Rand error, split and merge, see ``object_scores``: means over slices; NaN unless
            class 1 is a boundary.
        spacing: voxel size along z, y, x used for distances; 1 if the volume states none.
        unit: unit of the spacing; "voxel" if the volume states no spacing, None if it states no unit.
    """

    name: str
    confusion: NDArray[np.int64]
    hd95: Floats
    surface_dice: Floats
    surface_dice_3: Floats
    objects: Floats
    spacing: tuple[float, float, float]
    unit: str | None

    @property
    def dice(self) -> Floats:
        """Dice of each class (C,), 0..1."""
        hits, sizes = self._counts()
        return ratio(2 * hits, sizes)

    @property
    def iou(self) -> Floats:
        """Intersection over union of each class (C,), 0..1."""
        hits, sizes = self._counts()
        return ratio(hits, sizes - hits)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values; lists are by class."""
        return {
            "name": self.name,
            "dice": self.dice.tolist(),
            "iou": self.iou.tolist(),
            "hd95": self.hd95.tolist(),
            "surface_dice": self.surface_dice.tolist(),
            "surface_dice_3": self.surface_dice_3.tolist(),
            **_objects_dict(self.objects),
            "confusion": self.confusion.tolist(),
            "spacing": list(self.spacing),
            "unit": self.unit,
        }

    def _counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each class the correct voxels, and those of the labels plus those of the prediction."""
        return self.confusion.diagonal(), self.confusion.sum(axis=0) + self.confusion.sum(axis=1)


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a network on several volumes, and their means.

    Attributes:
        volumes: the scores of each volume, at least one.
        stress: what disturbed slices cost; None if that was not asked for.
    """

    volumes: tuple[VolumeScores, ...]
    stress: Stress | None = None

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes 1..C-1."""
        return _mean_class(self._mean("dice"))

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes 1..C-1."""
        return _mean_class(self._mean("iou"))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values, in the layout of ``result.json``.

        ``dice``, ``iou``, ``hd95``, ``surface_dice`` and ``surface_dice_3`` each have a ``mean`` over the classes
        1..C-1 and ``per_class``; volumes measured in different units have no common ``hd95``. ``confusion`` is the sum
        over the volumes; ``volumes`` lists the scores of each. ``stress`` is not among them.
        """
        scores = {
            name: self._mean(name) for name in ("dice", "iou", "hd95", "surface_dice", "surface_dice_3")
        }
        return {
            **{
                name: {"mean": _mean_class(values), "per_class": values.tolist()}
                for name, values in scores.items()
            },
            **_objects_dict(self._mean("objects")),
            "confusion": np.sum([volume.confusion for volume in self.volumes], axis=0).tolist(),
            "volumes": [volume.to_dict() for volume in self.volumes],
        }

    def _mean(self, name: str) -> Floats:
        values = nan_mean([getattr(volume, name) for volume in self.volumes])
        one_unit = len({volume.unit for volume in self.volumes}) == 1
        return values if one_unit or name != "hd95" else np.full_like(values, np.nan)


class SurfaceScores(NamedTuple):
    """The distances between the surfaces of two masks; see ``surface_scores``."""

    hd95: float
    surface_dice: float
    surface_dice_3: float


def surface_scores(
    labels: ArrayLike, predicted: ArrayLike, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> SurfaceScores:
    """Compare the surfaces of two masks (z, y, x): their edges as MONAI defines them.

    Args:
        labels: where the class is.
        predicted: where it is predicted.
        spacing: voxel size along z, y, x.

    Returns:
        HD95, the 95th percentile of the distances from the voxels of one surface to the other surface, the larger of
        both directions; the diagonal of the volume, which no distance exceeds, if one mask is empty; NaN if both are.
        Surface Dice, the share of the voxels of both surfaces that lie no farther from the other than one voxel, the
        larger of its sizes along y and x (Nikolov et al., arXiv 1809.04430), 0..1; NaN if both masks are empty. Then
        the same within three voxels.

    Raises:
        MissingExtraError: MONAI is not installed.

    Example:
        >>> mask = np.zeros((8, 8, 8), bool)
        >>> mask[2:6, 2:6, 2:6] = True
        >>> tuple(surface_scores(mask, np.roll(mask, 2, axis=0), spacing=(3, 1, 1)))
        (6.0, 0.5, 0.714...)
    """
    with needs_extra("train", "comparing surfaces"):
        from monai.metrics import get_mask_edges

    masks = np.asarray(predicted, bool), np.asarray(labels, bool)
    if not all(mask.any() for mask in masks):
        if not any(mask.any() for mask in masks):
            return SurfaceScores(np.nan, np.nan, np.nan)
        return SurfaceScores(math.dist(np.multiply(masks[0].shape, spacing), (0, 0, 0)), 0.0, 0.0)
    first, second = get_mask_edges(*masks)
    # MONAI searches a tree here, which takes hours if a prediction is noise; the transform's time is constant.
    distances = [
        distance_transform_edt(~near, sampling=spacing)[far]
        for near, far in ((first, second), (second, first))
    ]
    both, voxel = np.concatenate(distances), max(spacing[1:]) * (1 + ROUNDING)
    return SurfaceScores(
        float(max(np.percentile(distance, PERCENTILE) for distance in distances)),
        float(np.mean(both <= voxel)),
        float(np.mean(both <= WIDE * voxel)),
    )


def object_scores(
    labels: ArrayLike, predicted: ArrayLike, background: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Compare the objects that boundaries separate in a slice, with scikit-image.

    Objects are the connected regions (by edges, not corners) off the boundary. Predicted objects are grown until
    they meet, so that a thick boundary is not penalized; pixels on the boundary of the labels do not count.

    Args:
        labels: (y, x), True on the boundary.
        predicted: (y, x), True where the boundary is predicted.
        background: (y, x), True where the labels have no object; these pixels do not count either.

    Returns:
        The adapted Rand error, 0..1 (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142), and the two parts of
        the variation of information in bits (Meila 2007, doi:10.1016/j.jmva.2006.11.013): what the prediction splits
        and what it merges. All NaN if no object of the labels has two pixels.

    Raises:
        MissingExtraError: scikit-image is not installed.

    Example: two objects that the prediction merges.
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
    if background is not None:
        truth[np.asarray(background, bool)] = 0
    if not np.bincount(truth.ravel())[1:].max(initial=0) > 1:
        return (np.nan,) * 3
    found = label(~np.asarray(predicted, bool), connectivity=1)
    found = expand_labels(found, distance=sum(found.shape))
    with np.errstate(invalid="ignore"):  # the unused precision of single-pixel objects
        error, _, _ = adapted_rand_error(truth, found, ignore_labels=(0,))
    split, merge = variation_of_information(truth, found, ignore_labels=(0,))
    return float(error), float(split), float(merge)


def confusion_matrix(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Count pixels by class (row) and predicted class (column); those of no class are left out."""
    pairs = truth * classes + predicted
    counted = pairs[truth >= 0] if truth.min(initial=0) < 0 else pairs.ravel()
    pairs = np.bincount(counted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def nan_mean(rows: Sequence[ArrayLike]) -> Floats:
    """Return the mean of each column over the rows that are not NaN; NaN where all are."""
    values = np.array(rows, dtype=np.float64)
    valid = ~np.isnan(values)
    return ratio(np.where(valid, values, 0).sum(axis=0), valid.sum(axis=0))


def _mean_class(values: Floats) -> float:
    return float(nan_mean(values[1:, None].tolist())[0])


def _objects_dict(objects: Floats) -> dict[str, Any]:
    error, split, merge = objects.tolist()
    return {"adapted_rand_error": error, "variation_of_information": {"split": split, "merge": merge}}
