"""How well a network's answers agree with the labels of whole volumes, and what disturbed slices cost it.

    scores = evaluate_parts(network, parts, classes=2)
    scores.mean_dice

Let n_ij be the number of voxels of class i predicted as class j (the confusion matrix of a volume):

    Dice_c = 2 n_cc / (sum_j n_cj + sum_j n_jc)        IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)

A class that the labels of a volume lack but the prediction has counts as 0; one that neither has has no score there (NaN), and
is left out of the mean. So it is in ``results.stress``. The score of several
volumes is the mean over those that have one; the mean over classes excludes class 0, the background.

Every slice is read once. For the stress test, each window then goes through the network in all the ways of ``Disturbances``:
each is what happens to real stacks. The middle slice, which is to be segmented, stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.ndimage import distance_transform_edt

from evenslice._core import ConfigError, needs_extra, option, progress_bar, whole_number
from evenslice.inference.prediction import (
    CLASS_BYTES,
    choose_tile,
    class_map,
    even_slices,
    predict,
    try_network,
)
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.neutralizing import record_of
from evenslice.results import Stress, ratio
from evenslice.volumes import read_in_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from evenslice.inference.prediction import Network
    from evenslice.volumes import LabelledVolume, Scaling, Volume

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
        values = nan_mean([getattr(volume, name) for volume in self.volumes])
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


KINDS = ("missing", "blank", "noisy", "shifted")
"""What becomes of a slice: the middle slice in its place; 0, the darkest intensity; noise added; or a translation."""

NOISE = 0.1
"""Standard deviation of the noise of noisy slices, where intensities are scaled to 0..1."""

SHIFT = 8
"""Pixels by which shifted slices are translated along x; their first column is repeated."""


@dataclass(frozen=True)
class Disturbances:
    """The ways in which a window of N slices is shown to a network.

    Attributes:
        slices: N = 2K + 1, at least 3.
        seed: random seed of the noise.

    Example: windows of one pixel, at offsets -1, 0 and 1, as they are, reversed, and with a missing slice.
        >>> window = [np.full((1, 1), value, np.float32) for value in (0.2, 0.5, 0.8)]
        >>> ways = Disturbances(3).windows(window, 0, 0)
        >>> [[round(plane.item(), 2) for plane in next(ways)] for _ in range(5)]
        [[0.2, 0.5, 0.8], [0.8, 0.5, 0.2], [0.5, 0.5, 0.8], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]]
        >>> len(Disturbances(3)), Disturbances(5).kinds[:2]
        (14, [('missing', 1), ('missing', 2)])
    """

    slices: int
    seed: int = 0

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """The kind and the offset k of each three ways after the first two."""
        return [(kind, k) for kind in KINDS for k in range(1, self.slices // 2 + 1)]

    def __len__(self) -> int:
        """Return the number of ways."""
        return 2 + 3 * len(self.kinds)

    def windows(self, window: Sequence[Plane], volume: int, z: int) -> Iterator[list[Plane]]:
        """Yield the window as it is, reversed, and for each of ``kinds`` with the slice at -k, that at +k, and both.

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
        noise = [NOISE * random.standard_normal(window[middle].shape, dtype=np.float32) for _ in range(2)]
        for kind, k in self.kinds:
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
        shift = min(SHIFT, plane.shape[1] - 1)
        return np.pad(plane[:, : plane.shape[1] - shift], [(0, 0), (shift, 0)], mode="edge")


MOST_SLICES = 60
"""Slices whose windows are disturbed, spread evenly over the volumes, unless another number is asked for."""


@dataclass(frozen=True)
class StressedVolume:
    """A volume (z, y, x), its scaling to 0..1, and the class of each of its voxels if that is known."""

    volume: Volume
    scaling: Scaling
    labels: Volume | None = None


class StressTest:
    """Disturbs windows, and compares the answers slice by slice.

    Args:
        depths: the number of slices of each volume.
        slices: N, odd; at least 3 if anything is disturbed.
        classes: C, at least 2.
        most: disturb the windows of at most this many slices, spread evenly over the volumes; None for all, 0 for none.
        seed: random seed of the noise.

    Raises:
        ConfigError: a window of one slice has no neighbours, or the seed is negative.
    """

    def __init__(
        self, depths: Sequence[int], slices: int, classes: int, *, most: int | None, seed: int = 0
    ) -> None:
        if slices < 3 and most != 0:
            raise ConfigError(
                f"{option('slices', slices)}: such a window has no neighbours that could be disturbed"
            )
        self.ways = Disturbances(slices, whole_number("seed", seed, least=0))
        self.classes = classes
        self.chosen = [set[int]() for _ in depths] if most == 0 else list(map(set, even_slices(depths, most)))
        self._rows: list[tuple[int, int, NDArray[np.int64]]] = []
        self._labelled = True

    @property
    def more(self) -> int:
        """How many windows are predicted besides the intact ones."""
        return (len(self.ways) - 1) * sum(map(len, self.chosen))

    def windows(self, volume: int) -> Callable[[int, Sequence[Plane]], Iterator[Sequence[Plane]]]:
        """Return what to predict for each window of a volume: as it is, and if it is chosen, disturbed in all ways."""

        def disturb(z: int, window: Sequence[Plane]) -> Iterator[Sequence[Plane]]:
            ways = self.ways.windows(window, volume, z)
            return ways if z in self.chosen[volume] else islice(ways, 1)

        return disturb

    def watch(
        self,
        outputs: Iterable[tuple[int, Tensor]],
        volume: int,
        labels: Volume | None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Compare the answers to the windows of a volume, and pass on those to the intact ones.

        Args:
            outputs: z and logits (classes, y, x), for each window in all its ways; see ``windows``.
            volume: number of the volume.
            labels: the reference; by default the intact answer.
            advance: called with the number of windows that were answered.

        Yields:
            z and the class map (y, x) of each intact window.
        """
        self._labelled = labels is not None
        outputs = iter(outputs)
        for z, output in outputs:
            answer = class_map(output, self.classes)
            advance(1)
            if z in self.chosen[volume]:
                reference = answer if labels is None else labels[z]
                matrices = [confusion_matrix(reference, answer, self.classes)]
                for _, other in islice(outputs, len(self.ways) - 1):
                    matrices.append(confusion_matrix(reference, class_map(other, self.classes), self.classes))
                    advance(1)
                found = np.array(matrices)  # (ways, class, answered class)
                hits, sizes = found.diagonal(axis1=1, axis2=2), found.sum(axis=2) + found.sum(axis=1)
                self._rows.append((volume, z, np.stack([hits, sizes])))
            yield z, answer

    def result(self) -> Stress | None:
        """Return what the disturbances cost; None if there were none."""
        if not self._rows:
            return None
        volume, _, counts = (np.array(column) for column in zip(*self._rows, strict=True))
        return Stress.of_counts(
            volume,
            counts[:, 0],
            counts[:, 1],
            self.ways.kinds,
            reference="labels" if self._labelled else "intact answer",
            noise=NOISE,
            shift=SHIFT,
        )


def stress(  # all but three arguments have defaults and names
    network: Network,
    volumes: Sequence[StressedVolume],
    *,
    slices: int,
    step: int = 1,
    classes: int | None = None,
    most_slices: int | None = MOST_SLICES,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Stress:
    """Measure what disturbed slices cost a network.

    Args:
        network: a network or a function, ready to run.
        volumes: one or more, all with labels or all without.
        slices: N, odd, at least 3.
        step: distance between neighbouring slices of a window.
        classes: C; by default as many as the network returns, at least 2.
        most_slices: disturb the windows of at most this many slices, spread evenly over the volumes; None for all.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows per forward pass.
        seed: random seed of the noise.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns no map of logits.
        ConfigError: an option is out of range, or a window has no neighbours.

    Example: a network that reads the slice before the middle, and no other.
        >>> import torch
        >>> from evenslice.inference import ReadyNetwork
        >>> from evenslice.volumes import Scaling, open_volume
        >>> reader = torch.nn.Conv2d(3, 1, 1)
        >>> _ = reader.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = reader.bias.requires_grad_(False).fill_(-0.5)
        >>> network = ReadyNetwork(reader, slices=3, device="cpu", dtype="float32")
        >>> noise = open_volume(np.random.default_rng(0).random((20, 32, 32)))
        >>> missing = stress(network, [StressedVolume(noise, Scaling(0, 1))], slices=3).losses[0]
        >>> missing.kind, missing.before.loss.estimate > 0.4, missing.after.loss.estimate, missing.after.dice
        ('missing', True, 0.0, 1.0)
    """
    if not volumes:
        raise ConfigError("no volume to stress; give at least one")
    if len({item.labels is None for item in volumes}) > 1:
        raise ConfigError("some volumes have labels and some have none; give labels for all, or for none")
    if classes is None:
        classes = try_network(network, slices, tile or choose_tile(network, volumes[0].volume.shape[1:]))
    test = StressTest([len(item.volume) for item in volumes], slices, classes, most=most_slices, seed=seed)
    with progress_bar(
        "stress", len(test.ways) * sum(map(len, test.chosen)), "windows", show=progress
    ) as advance:
        for index, item in enumerate(volumes):
            outputs = predict(
                network,
                item.volume,
                scaling=item.scaling,
                slices=slices,
                step=step,
                centres=sorted(test.chosen[index]),
                tile=tile,
                batch=batch,
                shown=test.windows(index),
            )
            labels = None if item.labels is None else _in_runs(item.labels)
            for _ in test.watch(outputs, index, labels, advance):
                pass
    return cast("Stress", test.result())


LARGEST_SURFACE = 2**26
"""Voxels of the largest volume whose surfaces are compared, which takes up to 64 bytes a voxel."""


def evaluate_parts(  # all but three arguments have defaults and names
    model: nn.Module,
    parts: Sequence[LabelledVolume],
    *,
    classes: int,
    step: int = 1,
    boundaries: bool = False,
    surfaces: bool = True,
    most_slices: int | None = None,
    stressed: int = 0,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = False,
) -> Scores:
    """Predict whole volumes slice by slice and compare them with their labels.

    The network itself is left unchanged; a frozen copy runs, in float32.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x); one channel is enough for two classes. The
            record that ``neutralize`` left on it gives the number of slices, 3 without one, and their scaling.
        parts: volumes with their labels and scaling, at least one.
        classes: C, the number of classes, 2 or more; labels are 0..C-1.
        step: distance between neighbouring slices of a window.
        boundaries: also compare the objects whose boundaries are class 1.
        surfaces: also compare the surfaces of volumes of up to ``LARGEST_SURFACE`` voxels, whose labels and
            prediction are then held in memory.
        most_slices: evaluate at most this many slices, spread evenly over all volumes, plus one for each class that
            these appear to miss; not with ``surfaces``.
        stressed: disturb the windows of at most this many slices, spread evenly over all volumes, and compare the
            answers, see ``inference.stressing``; 0 for none. Not with ``most_slices``.
        seed: random seed of the noise of disturbed slices.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        progress: show progress on standard error: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read or predicted, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns another number of classes.
        ConfigError: an option is out of range.
        MissingExtraError: a package of the extra ``train`` is missing.

    Example: labels that say which voxels are bright, and a network that finds them.
        >>> import torch
        >>> from evenslice.volumes import ClassIndex, LabelledVolume, Scaling, open_volume
        >>> image = np.random.default_rng(0).random((4, 32, 32))
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> labels = open_volume((image > 0.5).astype(np.int64))
        >>> index = ClassIndex(np.array([2048, 2048]), ())
        >>> part = LabelledVolume("noise", open_volume(image), labels, Scaling(0, 1), index)
        >>> evaluate_parts(network, [part], classes=2, device="cpu").mean_dice
        1.0
    """
    if not parts:
        raise ConfigError("no volume to evaluate on; give at least one")
    if most_slices is not None and (most_slices < 1 or surfaces or stressed):
        raise ConfigError(
            f"{option('most_slices', most_slices)}: must be at least 1, and surfaces and disturbed slices need all slices"
        )
    record = record_of(model)
    slices = record.slices if record else 3
    network = ReadyNetwork(model, slices=slices, device=device)
    if most_slices is None:  # of whole volumes, which folded batch norms make faster
        network.prepare(slices, choose_tile(network, parts[0].volume.shape[1:]))
    test = StressTest([len(part.volume) for part in parts], slices, classes, most=stressed, seed=seed)
    return score_parts(
        network,
        parts,
        test,
        step=step,
        centres=_choose_slices(parts, most_slices),
        boundaries=boundaries,
        surfaces=surfaces,
        progress=progress,
    )


def score_parts(
    network: Network,
    parts: Sequence[LabelledVolume],
    test: StressTest,
    *,
    step: int,
    centres: Sequence[Sequence[int]],
    boundaries: bool = False,
    surfaces: bool = True,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    progress: bool | None = False,
) -> Scores:
    """Score a network that is ready to run; each slice is read once, and goes through it as often as it is disturbed.

    Args:
        network: a network or a function, ready to run.
        parts: the volumes with their labels.
        test: disturbs windows of them.
        step: distance between neighbouring slices of a window.
        centres: the slices of each volume to predict, ascending.
        boundaries: as for ``evaluate_parts``.
        surfaces: likewise.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows per forward pass, see ``predict``; fewer from where memory runs out.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.
    """
    compared = [surfaces and part.volume.size <= LARGEST_SURFACE for part in parts]
    for name, needed, purpose in (
        ("monai", any(compared), "comparing surfaces"),
        ("skimage", boundaries, "comparing objects"),
    ):
        if needed:  # before the first slice is predicted
            with needs_extra("train", purpose):
                import_module(name)
    found = []
    with progress_bar("evaluate", sum(map(len, centres)) + test.more, "windows", show=progress) as advance:
        for index, part in enumerate(parts):
            outputs = predict(
                network,
                part.volume,
                scaling=part.scaling,
                slices=test.ways.slices,
                step=step,
                centres=centres[index],
                tile=tile,
                batch=batch,
                shown=test.windows(index),
            )
            labels = _in_runs(part.labels)
            answers = test.watch(outputs, index, labels, advance)
            found.append(
                _compare(answers, labels, part, test.classes, boundaries=boundaries, surfaces=compared[index])
            )
    return Scores(tuple(found), test.result())


def _in_runs(classes: Volume) -> Volume:
    return read_in_runs(classes, len(classes), CLASS_BYTES)


def _choose_slices(parts: Sequence[LabelledVolume], most: int | None) -> list[list[int]]:
    """Choose evenly spaced slices of the volumes laid end to end; return them by volume, ascending.

    For each foreground class known only from other slices, the slice that appears to hold most of it is added.
    """
    depths = [len(part.volume) for part in parts]
    total, starts = sum(depths), np.cumsum([0, *depths[:-1]])
    chosen = {
        int(start) + place
        for start, places in zip(starts, even_slices(depths, most), strict=True)
        for place in places
    }
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
    background = None if part.background is None else _in_runs(part.background)
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
        objects=nan_mean(objects or [(np.nan,) * 3]),
        spacing=spacing,
        unit=volume.unit if volume.spacing else "voxel",
    )
