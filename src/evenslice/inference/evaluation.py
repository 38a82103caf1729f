"""How well a network's answers agree with the labels of whole volumes, and the cost of disturbed slices.

    scores = evaluate(model, "brain.nii.gz", "labels.nii.gz", stress=True)
    scores.dice, scores.stress.losses[0].asymmetry

Let n_ij be the number of voxels of class i predicted as class j (the confusion matrix of a volume):

    Dice_c = 2 n_cc / (sum_j n_cj + sum_j n_jc)        IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)

A class that the labels of a volume lack but the prediction has counts as 0; one that neither has has no score there (NaN), and
is left out of the mean. So it is in ``results.stress``. The score of several
volumes is the mean over those that have one; the mean over classes excludes class 0, the background.

Every slice is read once. For the stress test, each window then goes through the network in all the ways of ``StressTest``:
each is what happens to real stacks. The middle slice, which is to be segmented, stays as it is.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from evenslice._core import (
    ConfigError,
    json_text,
    needs_extra,
    option,
    package_versions,
    progress_bar,
    staged_folder,
    whole_number,
)
from evenslice.inference.compute import Compute
from evenslice.inference.prediction import Predictor, class_map, even_slices
from evenslice.inference.ready_networks import make_ready
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.results import Stress, nan_mean, ratio
from evenslice.volumes import LabelledVolume, Reading, fingerprint, index_classes, open_labels, read_in_runs

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray
    from torch import nn

    from evenslice.volumes import Scaling, Volume, VolumeLike

    Floats = NDArray[np.float64]
    Plane = NDArray[np.float32]


BY_CLASS = ("dice", "iou", "hd95", "surface_dice", "surface_dice_3")
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
            **{name: getattr(self, name).tolist() for name in BY_CLASS},
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
        stress: the cost of disturbed slices; None if that was not asked for.
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
        scores = {name: self._mean(name) for name in BY_CLASS}
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
        values = nan_mean(np.array([getattr(volume, name) for volume in self.volumes]))
        one_unit = len({volume.unit for volume in self.volumes}) == 1
        return values if one_unit or name != "hd95" else np.full_like(values, np.nan)


def surface_scores(
    labels: ArrayLike, predicted: ArrayLike, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[float, float, float]:
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
        >>> surface_scores(mask, np.roll(mask, 2, axis=0), spacing=(3, 1, 1))
        (6.0, 0.5, 0.714...)
    """
    with needs_extra("train", "comparing surfaces"):
        from monai.metrics import get_mask_edges

    masks = np.asarray(predicted, bool), np.asarray(labels, bool)
    if not all(mask.any() for mask in masks):
        if not any(mask.any() for mask in masks):
            return (np.nan,) * 3
        return math.dist(np.multiply(masks[0].shape, spacing), (0, 0, 0)), 0.0, 0.0
    first, second = get_mask_edges(*masks)
    # MONAI searches a tree here, which takes hours if a prediction is noise; the transform's time is constant.
    distances = [
        distance_transform_edt(~near, sampling=spacing)[far]
        for near, far in ((first, second), (second, first))
    ]
    both, voxel = np.concatenate(distances), max(spacing[1:]) * (1 + ROUNDING)
    return (
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


def _mean_class(values: Floats) -> float:
    return float(nan_mean(values[1:, None])[0])


def _objects_dict(objects: Floats) -> dict[str, Any]:
    error, split, merge = objects.tolist()
    return {"adapted_rand_error": error, "variation_of_information": {"split": split, "merge": merge}}


KINDS = ("missing", "blank", "noisy", "shifted")
"""What becomes of a slice: the middle slice in its place; 0, the darkest intensity; noise added; or a translation."""


def disturbances(slices: int) -> list[tuple[str, int]]:
    """Return the kind and the offset k of each three ways in which windows of N slices are disturbed.

    Example:
        >>> disturbances(5)[:3]
        [('missing', 1), ('missing', 2), ('blank', 1)]
    """
    return [(kind, k) for kind in KINDS for k in range(1, slices // 2 + 1)]


def count_ways(slices: int) -> int:
    """Return in how many ways a window is shown: as it is, reversed, and disturbed."""
    return 2 + 3 * len(disturbances(slices))


MOST_SLICES = 60
"""Slices whose windows are disturbed, spread evenly over the volumes, unless another number is asked for."""

CLASS_BYTES = 2**26
"""Classes that are read at once, if slices are stored together: more are in memory while they are looked up."""


class StressTest:
    """Disturbs windows of some slices, and compares the answers slice by slice.

    Args:
        predictor: predicts windows of N slices, at least 3 if anything is disturbed.
        classes: C, at least 2.
        depths: the number of slices of each volume.
        most: disturb the windows of at most this many slices, spread evenly over the volumes; None for all, 0 for none.
        seed: random seed of the noise.

    Raises:
        ConfigError: a window of one slice has no neighbours, or the seed is negative.
    """

    def __init__(
        self, predictor: Predictor, classes: int, depths: Sequence[int], *, most: int | None, seed: int = 0
    ) -> None:
        slices = predictor.slices
        if slices < 3 and most != 0:
            raise ConfigError(
                f"{option('slices', slices)}: such a window has no neighbours that could be disturbed"
            )
        self.predictor, self.classes, self.slices = predictor, classes, slices
        self.seed = whole_number("seed", seed, least=0)
        self.chosen = [set[int]() for _ in depths] if most == 0 else list(map(set, even_slices(depths, most)))
        self._rows: list[tuple[int, int, NDArray[np.int64]]] = []

    def windows(self, centres: Sequence[Sequence[int]]) -> int:
        """Return how many windows are predicted for the slices of each volume, some of them in all ways."""
        return sum(map(len, centres)) + (count_ways(self.slices) - 1) * sum(map(len, self.chosen))

    def disturb(self, window: Sequence[Plane], volume: int, z: int) -> Iterator[list[Plane]]:
        """Yield the window as it is, reversed, and for each of ``disturbances`` with the slice at -k, that at +k, and both.

        Args:
            window: its N slices (y, x), scaled to 0..1.
            volume: number of the volume.
            z: the middle slice. The noise depends on the volume and z, and is the same at -k as at +k; where both are
                noisy, that at +k is another.
        """
        yield list(window)
        yield list(window[::-1])
        middle = self.slices // 2
        random = np.random.default_rng([self.seed, volume, z])
        noise = [
            Stress.noise * random.standard_normal(window[middle].shape, dtype=np.float32) for _ in range(2)
        ]
        for kind, k in disturbances(self.slices):
            before, after = (self._slice(kind, window, middle + side * k, noise[0]) for side in (-1, 1))
            other = self._slice(kind, window, middle + k, noise[1])
            for changes in ({-k: before}, {k: after}, {-k: before, k: other}):
                yield [changes.get(place - middle, plane) for place, plane in enumerate(window)]

    def _slice(self, kind: str, window: Sequence[Plane], place: int, noise: Plane) -> Plane:
        """Return what stands in the place of a slice."""
        plane = window[place]
        if kind == "missing":
            return window[self.slices // 2]
        if kind == "blank":
            return np.zeros_like(plane)
        if kind == "noisy":
            noisy: Plane = np.clip(plane + noise, 0, 1)  # as the scaling clips voxels
            return noisy
        shift = min(Stress.shift, plane.shape[1] - 1)
        return np.pad(plane[:, : plane.shape[1] - shift], [(0, 0), (shift, 0)], mode="edge")

    def answers(
        self,
        number: int,
        volume: Volume,
        scaling: Scaling,
        labels: Volume | None,
        centres: Sequence[int],
        advance: Callable[[int], None],
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Predict slices of a volume; compare the answers to disturbed windows, and pass on those to the intact ones.

        Args:
            number: of the volume.
            volume: the volume.
            scaling: maps voxel values to 0..1.
            labels: the reference; by default the intact answer.
            centres: the slices, ascending.
            advance: called with numbers of windows that were answered.

        Yields:
            z and the class map (y, x) of each intact window.
        """

        def shown(z: int, window: Sequence[Plane]) -> Iterator[Sequence[Plane]]:
            return islice(self.disturb(window, number, z), None if z in self.chosen[number] else 1)

        outputs = self.predictor.predict(volume, scaling, centres=centres, shown=shown)
        for z, group in groupby(outputs, key=itemgetter(0)):
            maps = (class_map(output, self.classes) for _, output in group)
            answer = next(maps)
            advance(1)
            if z in self.chosen[number]:
                reference = answer if labels is None else labels[z]
                matrices = [confusion_matrix(reference, found, self.classes) for found in (answer, *maps)]
                advance(len(matrices) - 1)
                found = np.array(matrices)  # (ways, class, answered class)
                hits, sizes = found.diagonal(axis1=1, axis2=2), found.sum(axis=2) + found.sum(axis=1)
                self._rows.append((number, z, np.stack([hits, sizes])))
            yield z, answer

    def result(self, *, labelled: bool) -> Stress | None:
        """Return what the disturbances cost; None if there were none."""
        if not self._rows:
            return None
        volume, _, counts = (np.array(column) for column in zip(*self._rows, strict=True))
        return Stress.of_counts(
            volume,
            counts[:, 0],
            counts[:, 1],
            disturbances(self.slices),
            reference="labels" if labelled else "intact answer",
        )


def measure_stress(
    predictor: Predictor,
    volumes: Sequence[tuple[Volume, Scaling, Volume | None]],
    *,
    classes: int | None = None,
    most_slices: int | None = MOST_SLICES,
    seed: int = 0,
    progress: bool | None = None,
) -> Stress:
    """Measure the cost of disturbed slices to a network.

    Args:
        predictor: predicts windows of N slices, at least 3.
        volumes: one or more (z, y, x), each with its scaling to 0..1, and with the class of each voxel or None.
        classes: C; by default as many as the network returns, at least 2.
        most_slices: disturb the windows of at most this many slices, spread evenly over the volumes; None for all.
        seed: random seed of the noise.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns no map of logits.
        ConfigError: an option is out of range, or a window has no neighbours.

    Example: a network that reads the slice before the middle, and no other.
        >>> import torch
        >>> from evenslice.inference import Predictor, ReadyNetwork
        >>> from evenslice.volumes import Scaling, open_volume
        >>> reader = torch.nn.Conv2d(3, 1, 1)
        >>> _ = reader.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = reader.bias.requires_grad_(False).fill_(-0.5)
        >>> predictor = Predictor(ReadyNetwork(reader, slices=3, device="cpu", dtype="float32"), 3)
        >>> noise = open_volume(np.random.default_rng(0).random((20, 32, 32)))
        >>> missing = measure_stress(predictor, [(noise, Scaling(0, 1), None)]).losses[0]
        >>> missing.kind, missing.before.loss.estimate > 0.4, missing.after.loss.estimate, missing.after.dice
        ('missing', True, 0.0, 1.0)
    """
    if classes is None:
        classes = predictor.for_planes(volumes[0][0].shape[1:]).prepare()
    depths = [len(volume) for volume, *_ in volumes]
    test = StressTest(predictor, classes, depths, most=most_slices, seed=seed)
    centres = [sorted(chosen) for chosen in test.chosen]
    with progress_bar("stress", test.windows(centres), "windows", show=progress) as advance:
        for number, (volume, scaling, labels) in enumerate(volumes):
            held = None if labels is None else read_in_runs(labels, len(labels), CLASS_BYTES)
            for _ in test.answers(number, volume, scaling, held, centres[number], advance):
                pass
    return cast("Stress", test.result(labelled=volumes[0][2] is not None))


LARGEST_SURFACE = 2**26
"""Voxels of the largest volume whose surfaces are compared, which takes up to 64 bytes a voxel."""


def evaluate_parts(
    predictor: Predictor,
    parts: Sequence[LabelledVolume],
    *,
    classes: int,
    boundaries: bool = False,
    surfaces: bool = True,
    most_slices: int | None = None,
    stressed: int | None = 0,
    seed: int = 0,
    progress: bool | None = False,
) -> Scores:
    """Predict whole volumes slice by slice and compare them with their labels.

    Each slice is read once, and goes through the network as often as it is disturbed.

    Args:
        predictor: predicts with a network that returns logits (batch, classes, y, x); one channel is enough for two classes.
        parts: volumes with their labels and scaling, at least one.
        classes: C, the number of classes, 2 or more; labels are 0..C-1.
        boundaries: also compare the objects whose boundaries are class 1.
        surfaces: also compare the surfaces of volumes of up to ``LARGEST_SURFACE`` voxels, whose labels and
            prediction are then held in memory.
        most_slices: evaluate at most this many slices, spread evenly over all volumes, plus one for each class that
            these appear to miss; not with ``surfaces``.
        stressed: disturb the windows of at most this many slices, spread evenly over all volumes, and compare the
            answers; None for all, 0 for none. Not with ``most_slices``.
        seed: random seed of the noise of disturbed slices.
        progress: show progress on standard error: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read or predicted, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns another number of classes.
        MissingExtraError: a package of the extra ``train`` is missing.

    Example: labels that say which voxels are bright, and a network that finds them.
        >>> import torch
        >>> from evenslice.inference import Predictor, ReadyNetwork
        >>> from evenslice.volumes import LabelledVolume, Scaling, open_volume
        >>> image = np.random.default_rng(0).random((4, 32, 32))
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> labels = open_volume((image > 0.5).astype(np.int64))
        >>> counts = np.array([2048, 2048])
        >>> part = LabelledVolume("noise", open_volume(image), labels, Scaling(0, 1), counts)
        >>> predictor = Predictor(ReadyNetwork(network, slices=3, device="cpu"), 3)
        >>> evaluate_parts(predictor, [part], classes=2).mean_dice
        1.0
    """
    test = StressTest(predictor, classes, [len(part.volume) for part in parts], most=stressed, seed=seed)
    centres = _choose_slices(parts, most_slices)
    compared = [surfaces and part.volume.size <= LARGEST_SURFACE for part in parts]
    for name, needed in (("monai", any(compared)), ("skimage", boundaries)):
        if needed:  # before the first slice is predicted
            with needs_extra("train", "comparing surfaces or objects"):
                import_module(name)
    found = []
    with progress_bar("evaluate", test.windows(centres), "windows", show=progress) as advance:
        for number, part in enumerate(parts):
            labels = read_in_runs(part.labels, len(part.labels), CLASS_BYTES)
            answers = test.answers(number, part.volume, part.scaling, labels, centres[number], advance)
            options = {"boundaries": boundaries, "surfaces": compared[number]}
            found.append(_compare(answers, labels, part, classes, **options))
    return Scores(tuple(found), test.result(labelled=True))


def _choose_slices(parts: Sequence[LabelledVolume], most: int | None) -> list[list[int]]:
    """Choose evenly spaced slices of the volumes laid end to end; return them by volume, ascending.

    For each foreground class known only from other slices, the slice that appears to hold most of it is added.
    """
    depths = [len(part.volume) for part in parts]
    chosen = [set(places) for places in even_slices(depths, most)]
    for samples in zip(*(part.positions for part in parts), strict=True):
        held = [
            np.bincount(positions // math.prod(part.volume.shape[1:]), minlength=depth)
            for part, positions, depth in zip(parts, samples, depths, strict=True)
        ]
        if not any(counts[list(places)].any() for counts, places in zip(held, chosen, strict=True)):
            number = max(range(len(held)), key=lambda index: held[index].max(initial=0))
            if held[number].any():
                chosen[number].add(int(held[number].argmax()))
    return [sorted(places) for places in chosen]


def _compare(
    answers: Iterable[tuple[int, NDArray[np.int64]]],
    reference: Volume,
    part: LabelledVolume,
    classes: int,
    *,
    boundaries: bool,
    surfaces: bool,
) -> VolumeScores:
    """Compare the class maps of slices, each with its z, with those of the labels of a volume."""
    volume = part.volume
    spacing = volume.spacing or (1.0, 1.0, 1.0)
    kept = np.empty((2, *volume.shape) if surfaces else 0, np.min_scalar_type(classes - 1))
    confusion = np.zeros((classes, classes), np.int64)
    objects = []
    background = part.background and read_in_runs(part.background, len(part.background), CLASS_BYTES)
    for z, answer in answers:
        labels = reference[z]
        confusion += confusion_matrix(labels, answer, classes)
        # What is ignored is no object, but boundary, and has no surface but where it cuts one off.
        ignored = labels < 0
        truth, predicted = np.maximum(labels, 0), np.where(ignored, 0, answer)
        if boundaries:
            edges = (truth == 1) | ignored, (predicted == 1) | ignored
            objects.append(object_scores(*edges, background=None if background is None else background[z]))
        if surfaces:
            kept[:, z] = truth, predicted
    distances = np.full((classes, 3), np.nan)
    if surfaces:
        distances[1:] = [surface_scores(kept[0] == c, kept[1] == c, spacing) for c in range(1, classes)]
    return VolumeScores(
        name=part.name,
        confusion=confusion,
        hd95=distances[:, 0],
        surface_dice=distances[:, 1],
        surface_dice_3=distances[:, 2],
        objects=nan_mean(np.array(objects or [(np.nan,) * 3])),
        spacing=spacing,
        unit=volume.unit if volume.spacing else "voxel",
    )


RESULT_FILES = ("result.json",)
PACKAGES = ("evenslice", "torch", "numpy", "scipy", "monai", "onnxruntime", "openvino")


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
    """Predict a volume slice by slice, compare it with its labels, and measure the cost of disturbed slices.

    The network is not changed; a frozen copy of it runs. Every slice is read once.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x); one channel stands for two classes. Slices
            in 0..1 are scaled by its record, else by the mean and std that its library states for pretrained weights,
            else not at all. Or any function with such an output, such as one from ``load_onnx``; see
            ``evenslice.inference.BlackBox`` for its input. Or either in a ``Segmenter``.
        volume: the volume, an array (z, y, x), or a path.
        labels: the class of each voxel, whole numbers in an array of the same shape. Optional with ``stress``, which
            compares with the intact answer without them.
        stress: disturb the slices of windows: one neighbour, or both, missing (the middle slice in its place), blank
            (0, the darkest intensity), noisy (Gaussian noise of standard deviation 0.1, where intensities are scaled
            to 0..1) or shifted by 8 pixels along x; and the whole window reversed.
        stress_slices: disturb the windows of at most this many slices, spread evenly over the volume; by default 60.
        slices: N, odd; by default from the network's record, the function or the segmenter, else 3.
        surfaces: also compare surfaces, in volumes of up to 2**26 voxels.
        tile: size (y, x) of the in-plane tiles, see ``evenslice.inference.Predictor``.
        seed: random seed for the noise of noisy slices, 0 or more.
        reading: how to read the volume and the labels, by default the segmenter's; with ``instances``, scores compare
            the objects, too.
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
    predictor = Predictor(network, slices, reading.step, tile, compute.batch).for_planes(volume.shape[1:])
    classes = predictor.prepare()
    known = None if stored is None else values.class_volume(stored, classes)
    if known is not None:  # so that a value of no class is found before anything is computed
        index_classes(known, classes, keep=0)
    scaling = reading.fit_scaling(volume)
    stressed_windows = min(most, len(volume)) * count_ways(slices) if stress else 0
    whole = 0 if known is None else len(volume)
    predictor = predictor.with_engine(compute, volume, scaling, whole + stressed_windows)
    predictor.tell_rounding(volume, scaling, compute.progress)
    scores, stressed = None, None
    options: dict[str, Any] = {"classes": classes, "seed": seed, "progress": compute.progress}
    if stored is None or known is None:
        stressed = measure_stress(predictor, [(volume, scaling, None)], most_slices=most, **options)
    else:
        counts = np.zeros(classes, np.int64)  # all slices are predicted: none is chosen by its classes
        background = values.background_volume(stored)
        part = LabelledVolume(volume.path, volume, known, scaling, counts, background=background)
        options |= {"boundaries": values.instances is not None, "surfaces": surfaces}
        scores = evaluate_parts(predictor, [part], stressed=most if stress else 0, **options)
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
            "engine": predictor.network.engine,
        },
        volume={
            "path": volume.path,
            "shape": volume.shape,
            "intensity": (scaling.low, scaling.high),
            "image": fingerprint(volume),
            "labels": None if stored is None else fingerprint(stored),
            "labels_path": None if stored is None else stored.path,
            "label_options": None if stored is None else values.to_dict(),
            "region": volume.region,
            "level": volume.level,
            "select": dict(volume.select),
            "fill": scaling.fill,
        },
        seed=seed,
        versions=package_versions(PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    )


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How well a network's answers agree with labels, and the cost of disturbed slices.

    Attributes:
        scores: those of the whole volume; None without labels.
        stress: the cost of disturbed slices; None if that was not asked for.
        model: name, slices, step, scaling, device, precision and engine of the network.
        volume: the volume and its labels: where they are and their fingerprints, the shape, the voxel values that became 0
            and 1 (``intensity``), and the options of their reading.
        seed: random seed of the noise of noisy slices.
        versions: those of the packages.
        created: time, ISO 8601.
        command: the command line; None from Python.
    """

    scores: Scores | None
    stress: Stress | None
    model: dict[str, Any]
    volume: dict[str, Any]
    seed: int
    versions: dict[str, str]
    created: str
    command: str | None = None

    def __repr__(self) -> str:
        found = "no labels" if self.scores is None else f"Dice {self.dice:.3f}, IoU {self.iou:.3f}"
        return f"<Evaluation of {self.model['name']!r}: {found}>"

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
            "stress": None if self.stress is None else asdict(self.stress),
            "model": self.model,
            "volume": self.volume,
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
