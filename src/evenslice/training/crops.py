"""Random crops of volumes, or whole planes, each of which depends only on the seed and its number; and their augmentation.

    data = SliceWindows("brain.nii.gz", "labels.nii.gz", model=network, crop=(192, 192), foreground=0.5)
    for windows, labels in DataLoader(data, batch_size=8): ...

Crop i of a run does not depend on what was drawn before it, nor on the process: a run that is resumed, or that uses
several devices, sees the same crops. ``SliceWindows`` opens volumes for a user's own loop, and ``train`` reads the
parts of its configuration; both are a ``CropDataset``. Classifiers are trained on ``CentredCrops``.

Rotations, flips and intensity changes are array operations instead of MONAI's transforms: by default crops are prepared
in the training process, and the transforms take several times as long.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from evenslice._core import ConfigError, VolumeError, option, whole_number
from evenslice.neutralizing import Record, record_of
from evenslice.volumes import (
    LabelledVolume,
    Reading,
    WindowGrid,
    check_tile,
    hold_small,
    index_classes,
    open_labels,
    open_volumes,
    refuse_without_labels,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from torch import nn

    from evenslice.training.config import AugmentationConfig
    from evenslice.volumes import LabelValues, Scaling, Volume, VolumeLike

    Augmentation: TypeAlias = AugmentationConfig | Mapping[str, Any] | bool

POSITIONS = 2**18
"""Number of voxel positions kept for each foreground class, over all volumes."""

# Ranges and probabilities of intensity changes, for intensities in 0..1.
CHANGED = 0.5
GAMMA = 0.25  # exponents from exp(-GAMMA) to exp(GAMMA)
CONTRAST = 0.2
BRIGHTNESS = 0.1
NOISY = 0.5  # of the changed windows
NOISE = 0.04


class CropDataset(Dataset[Any]):
    """Windows of parts, with the class of each pixel of their centre slices: random crops, or whole planes in turn.

    The position of a crop is uniformly random or, with probability ``foreground``, around a voxel of a foreground
    class. All foreground classes are equally likely, and so are all voxels of a class.

    Args:
        parts: the volumes to crop.
        slices: N, the number of slices of a window, odd.
        step: distance between the slices of a window.
        crop: size along y and x; a smaller plane is reflected at its borders. None for whole planes: window i is
            that around centre slice i, all parts laid end to end, and from the first again if ``length`` is greater.
        length: number of windows; by default as many as cover each part once.
        edge: how windows at the ends of a part are filled, see ``evenslice.volumes.windows``.
        foreground: fraction of crops drawn around a foreground voxel, 0..1.
        augmentation: random changes; None for none.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
        seed: random seed.
        labelled: whether windows come with their labels.

    Example:
        >>> from evenslice.volumes import LabelledVolume, index_classes
        >>> from evenslice.volumes import open_volume
        >>> from evenslice.volumes import Scaling
        >>> image, labels = open_volume(np.ones((9, 64, 64))), open_volume(np.array([np.eye(64, dtype=int)] * 9))
        >>> part = LabelledVolume("diagonal", image, labels, Scaling(0, 2), *index_classes(labels, 2, keep=100))
        >>> crops = CropDataset([part], slices=5, crop=(32, 48), length=100, foreground=1)
        >>> window, classes = crops[7]
        >>> window.shape, classes.shape, int(classes.max())
        (torch.Size([5, 32, 48]), torch.Size([32, 48]), 1)
    """

    def __init__(  # all but two arguments have defaults and names
        self,
        parts: Sequence[LabelledVolume],
        *,
        slices: int,
        step: int = 1,
        crop: tuple[int, int] | None,
        length: int | None = None,
        edge: Literal["valid", "reflect"] = "reflect",
        foreground: float = 0.0,
        augmentation: AugmentationConfig | None = None,
        scaling: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        labelled: bool = True,
    ) -> None:
        self._crop, self._augmentation, self._seed = crop, augmentation, seed
        self._mean, self._std = scaling
        self._labels = [part.labels if labelled else None for part in parts]
        self._grids, self._turned = (
            [
                WindowGrid(part.volume, part.scaling, slices, tile or part.volume.shape[1:], step, edge)
                for part in parts
            ]
            for tile in (crop, crop and crop[::-1])
        )
        self._length = sum(map(len, self._grids)) if length is None else length
        self._positions = _Positions(parts, [grid.centres for grid in self._grids], foreground)

    @property
    def has_foreground(self) -> bool:
        """Whether the middle slice of any window has foreground."""
        return bool(self._positions.classes)

    def __repr__(self) -> str:
        size = "whole planes" if self._crop is None else " x ".join(map(str, self._crop))
        count = len(self._grids)
        volumes = "1 volume" if count == 1 else f"{count} volumes"
        return f"{type(self).__name__} {self._length} windows of {self._grids[0].slices} slices, {size}, of {volumes}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        """Return window ``index``; a negative one counts from the end, as in a list.

        Returns:
            The window, (N, y, x) float32, scaled for the network; and its classes, (y, x) int64, or () of centred
            crops, unless there are no labels.

        Raises:
            IndexError: there is no window of this number.
            VolumeError: a file cannot be read, or holds a label value of no class.
        """
        if not -self._length <= index < self._length:
            raise IndexError(f"window {index} of {self._length}")
        index %= self._length
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        turns = int(random.integers(4)) if self._augmentation and self._augmentation.rotations else 0
        window, labels = self._read(index, turns, random)
        scaled = torch.from_numpy(np.ascontiguousarray((window - self._mean) / self._std, dtype=np.float32))
        # Copied: what is one pixel high or wide counts as contiguous, although its strides may be negative.
        return scaled if labels is None else (scaled, torch.from_numpy(labels.copy()))

    def _read(
        self, index: int, turns: int, random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Return an augmented window, turned by so many quarters, and its labels."""
        if self._crop is None:
            number, z = self._positions.plane(index)
            grid, place = self._grids[number], [z, 0, 0]
            if grid.tile[0] != grid.tile[1]:
                turns -= turns % 2  # a quarter turn would change its shape
        else:
            number, *place = self._positions.draw(self._crop[::-1] if turns % 2 else self._crop, random)
            grid = (self._turned if turns % 2 else self._grids)[number]
        stored = self._labels[number]
        z, y, x = place
        window = np.rot90(grid.read(z, y, x), turns, (1, 2))
        labels = None if stored is None else np.rot90(grid.read_labels(stored, z, y, x), turns)
        return augment(window, labels, self._augmentation, random) if self._augmentation else (window, labels)


class CentredCrops(CropDataset):
    """Random windows of parts, with the class of the centre pixel of their middle slices, (y // 2, x // 2).

    The centre is a uniformly random voxel or, with probability ``foreground``, a voxel of a foreground class. Any voxel
    may be there: what a crop sees beyond the border of the plane is the plane mirrored. Augmentation leaves the centre
    in its place.

    Example: the class of a voxel is its column.
        >>> from evenslice.volumes import LabelledVolume, Scaling, index_classes, open_volume
        >>> columns = np.broadcast_to(np.arange(3), (5, 8, 3))
        >>> labels = open_volume(columns.copy())
        >>> part = LabelledVolume("columns", labels, labels, Scaling(0, 2), *index_classes(labels, 3, keep=100))
        >>> crops = CentredCrops([part], slices=3, crop=(4, 4), length=50)
        >>> window, label = crops[7]
        >>> window.shape, label.shape, label.item() == 2 * window[1, 2, 2].item()
        (torch.Size([3, 4, 4]), torch.Size([]), True)
    """

    def _read(
        self, index: int, turns: int, random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        del index
        rows, columns = crop = self._crop or (1, 1)
        number, z, y, x = self._positions.draw((1, 1), random)
        height, width = crop[::-1] if turns % 2 else crop
        # Flips and rotations leave the centre of an odd size in its place; the pixel too many is cut off after them.
        read = read_around(self._grids[number], (z, y, x), (height | 1, width | 1))
        window = np.rot90(read, turns, (1, 2))
        if self._augmentation:
            window, _ = augment(window, None, self._augmentation, random)
        stored = self._labels[number]
        label = None if stored is None else stored[z, y : y + 1, x : x + 1][0, 0]
        return window[:, :rows, :columns], None if label is None else np.array(label)


def read_around(grid: WindowGrid, place: tuple[int, int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Read the window whose centre pixel, (size // 2) in the middle slice, is a voxel; it is reflected at the border.

    Args:
        grid: the windows of the volume; its tile does not count.
        place: z, y, x of the voxel.
        size: in-plane size (y, x) of the window.

    Returns:
        (N, y, x) in 0..1.

    Example:
        >>> from evenslice.volumes import Scaling, open_volume
        >>> volume = open_volume(np.arange(12, dtype=np.float32).reshape(1, 3, 4))
        >>> window = read_around(WindowGrid(volume, Scaling(0, 16), 1, (1, 1)), (0, 0, 3), (3, 3))
        >>> (16 * window[0]).tolist()
        [[2.0, 3.0, 3.0], [2.0, 3.0, 3.0], [6.0, 7.0, 7.0]]
    """
    z, *centre = place
    rows, columns = (
        _mirrored(at - length // 2 + np.arange(length), plane)
        for at, length, plane in zip(centre, size, grid.volume.shape[1:], strict=True)
    )
    y, x = int(rows.min()), int(columns.min())
    box = replace(grid, tile=(int(rows.max()) + 1 - y, int(columns.max()) + 1 - x))
    return box.read(z, y, x)[:, rows - y][:, :, columns - x]


def _mirrored(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Map indices beyond an axis into it, as mirrors at both ends would, which show the first and last pixel twice."""
    folded = indices % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def augment(
    window: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    config: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Flip a window and its labels, lose slices and change intensities, as the configuration says.

    Rotations are not among them: they are chosen before a window is read, whose tile they turn. All slices are changed
    alike, but for noise.

    Args:
        window: (N, y, x) in 0..1.
        labels: (y, x) classes of the middle slice, if there are any.
        config: which changes.
        random: what decides, on a Philox generator. Which slices are lost changes nothing else that is drawn.
    """
    z, y, x = (-1 if draw < 0.5 else 1 for draw in random.random(3))
    if config.flips:
        window, labels = window[:, ::y, ::x], None if labels is None else labels[::y, ::x]
    if config.z_flip:
        window = window[::z]
    if config.missing_slices:
        # From numbers far ahead, so that the next draws are those of a crop without lost slices: arms are compared on both.
        ahead = np.random.Generator(cast("np.random.Philox", random.bit_generator).jumped())
        lost = ahead.random(len(window)) < config.missing_slices
        window = np.where(lost[:, None, None], window[len(window) // 2], window)
    if config.intensity and random.random() < CHANGED:
        window = _change_intensity(window, random)
    return window, labels


def _change_intensity(window: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Change gamma, contrast and brightness of a window, equally in all slices, and add noise to half of all."""
    gamma, contrast, brightness = random.uniform(-1, 1, 3) * (GAMMA, CONTRAST, BRIGHTNESS)
    window = window ** float(np.exp(gamma))
    window = (window - 0.5) * float(1 + contrast) + float(0.5 + brightness)
    if random.random() < NOISY:
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        noise = torch.randn(window.shape, generator=generator, dtype=torch.float32, device="cpu")
        window += random.uniform(0, NOISE) * noise.numpy()
    return window


class _Positions:
    """Draws positions of crops: a part, and the slice and corner in it.

    Args:
        parts: the volumes.
        centres: the centre slices of the windows of each.
        foreground: fraction of crops drawn around a foreground voxel.

    Attributes:
        classes: where each foreground class is on the centre slices, if anywhere.
    """

    def __init__(self, parts: Sequence[LabelledVolume], centres: Sequence[range], foreground: float) -> None:
        self._foreground = foreground
        self._shapes = [part.volume.shape for part in parts]
        self._centres = centres
        self._ends = np.cumsum([len(slices) for slices in centres])
        self._by_size = _cumulate(
            [len(z) * height * width for z, (_, height, width) in zip(centres, self._shapes, strict=True)]
        )
        found = [_within(part, slices) for part, slices in zip(parts, centres, strict=True)]
        self.classes = [
            (_cumulate([count for count, _ in by_part]), [positions for _, positions in by_part])
            for by_part in zip(*found, strict=True)
            if any(len(positions) for _, positions in by_part)
        ]

    def plane(self, index: int) -> tuple[int, int]:
        """Return the part and the centre slice of plane ``index``, all parts laid end to end and repeated."""
        place = index % int(self._ends[-1])
        number = int(np.searchsorted(self._ends, place, side="right"))
        return number, self._centres[number][place - int(self._ends[number])]

    def draw(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Return the index of a part, the centre slice z, and the corner y, x of a tile."""
        if self.classes and random.random() < self._foreground:
            return self._draw_around(tile, random)
        number = _choose(self._by_size, random)
        z = random.integers(len(self._centres[number]))
        y, x = (
            int(random.integers(max(length - size, 0) + 1))
            for length, size in zip(self._shapes[number][1:], tile, strict=True)
        )
        return number, self._centres[number][z], y, x

    def _draw_around(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a foreground voxel, and a corner of a tile that contains it."""
        by_part, positions = self.classes[random.integers(len(self.classes))]
        number = _choose(by_part, random)
        z, *inside = np.unravel_index(random.choice(positions[number]), self._shapes[number])
        low = [max(int(at) - size + 1, 0) for at, size in zip(inside, tile, strict=True)]
        high = [
            min(int(at), max(length - size, 0))
            for at, length, size in zip(inside, self._shapes[number][1:], tile, strict=True)
        ]
        y, x = random.integers(low, high, endpoint=True)
        return number, int(z), int(y), int(x)


def _within(part: LabelledVolume, centres: range) -> list[tuple[float, NDArray[np.int64]]]:
    """Return for each class how many voxels lie on the centre slices, estimated from the sample, and that sample."""
    plane = part.volume.shape[1] * part.volume.shape[2]
    found = []
    for count, positions in zip(part.counts, part.positions, strict=True):
        first, last = np.searchsorted(positions, (centres.start * plane, centres.stop * plane))
        kept = positions[first:last]
        found.append((count * (len(kept) / len(positions)) if len(positions) else 0.0, kept))
    return found


def _cumulate(weights: Sequence[float]) -> NDArray[np.float64]:
    total = np.cumsum(weights, dtype=np.float64)
    return np.asarray(total / total[-1])


def _choose(cumulated: NDArray[np.float64], random: np.random.Generator) -> int:
    return int(np.searchsorted(cumulated, random.random(), side="right"))


class SliceWindows(CropDataset):
    """The slice windows of volumes, as a map-style data set of PyTorch.

    Item i depends on the arguments and i alone, not on earlier items or on the process. Random crops are therefore
    the same in each pass through the data set: to train for 2,000 steps of 8 crops, set ``length`` to 16,000 and pass
    through it once. Volumes of up to 1 GiB in total are read into memory; larger ones are read piece by piece. It can
    be pickled for the workers of a ``DataLoader``.

    Args:
        volume: a volume, an array (z, y, x), a path, or several of these; for slices along another axis, one opened by
            ``open_volume`` with its ``plane``.
        labels: the class of each voxel, in volumes of the same shapes; None for windows without labels.
        slices: N, odd; by default the number recorded on ``model``, else 3.
        crop: size (y, x) of random crops; a smaller plane is reflected at its borders. By default whole planes: item
            i is the window around slice i of the volumes, one after the other, starting over if ``length`` is
            greater.
        edge: "reflect" fills windows at the ends of a volume with the inner slices, as ``segment`` does; "valid" omits
            these windows, as ``audit`` does.
        reading: how volumes and labels are read; one for each volume where they differ in intensity or fill. The class of
            voxels with the ``ignore_label`` is -100, which PyTorch's cross entropy ignores.
        model: a neutralized network, or its record, by which slices are scaled. Without, they are in 0..1.
        classes: number of classes, including background; by default as many as ``label_values``, else 2.
        foreground: fraction of crops drawn around a voxel of a class above 0, 0..1, all classes equally likely.
        augmentation: random flips, rotations and so on: True for all but missing slices, or an ``AugmentationConfig`` or
            its options as a dict; they need the extra ``train``.
        length: number of items; by default as many as there are whole planes, or as crops that cover them.
        seed: random seed.

    Attributes:
        slices: N.
        scalings: the map from voxel values to 0..1 of each volume.
        classes: number of classes.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite; or labels do not fit it.
            A label value of no class is found here with ``foreground``, which reads all labels, otherwise at the
            first item that has it.
        ConfigError: an option is out of range, has no effect, or contradicts the record of the network; or the
            network has no record.
        ModelError: ``model`` is not a network.
        MissingExtraError: there is augmentation, and a package of the extra ``train`` is missing.

    Example:
        >>> image = np.random.default_rng(0).random((12, 64, 64))
        >>> data = SliceWindows(image, image > 0.9, slices=5, crop=(32, 48), foreground=1, length=100)
        >>> data
        SliceWindows 100 windows of 5 slices, 32 x 48, of 1 volume
        >>> window, classes = data[7]
        >>> window.shape, classes.shape, int(classes.max())
        (torch.Size([5, 32, 48]), torch.Size([32, 48]), 1)
        >>> planes = SliceWindows(image)
        >>> len(planes), planes[0].shape
        (12, torch.Size([3, 64, 64]))
    """

    def __init__(
        self,
        volume: VolumeLike | Sequence[VolumeLike],
        labels: VolumeLike | Sequence[VolumeLike] | None = None,
        *,
        slices: int | None = None,
        crop: tuple[int, int] | None = None,
        edge: Literal["valid", "reflect"] = "reflect",
        reading: Reading | Sequence[Reading] | None = None,
        model: nn.Module | Record | None = None,
        classes: int | None = None,
        foreground: float = 0.0,
        augmentation: Augmentation | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        crop = None if crop is None else check_tile(np.asarray(crop).tolist(), "crop")
        length = None if length is None else whole_number("length", length, least=1)
        seed = whole_number("seed", seed, least=0)
        if not 0 <= foreground <= 1:
            raise ConfigError(f"{option('foreground', foreground)}: is a fraction of the crops, 0 to 1")
        if foreground and (crop is None or labels is None):
            missing = option("crop", [192, 192]) if crop is None else option("labels")
            raise ConfigError(
                f"{option('foreground', foreground)}: has no effect without {missing}; give both"
            )
        volumes, readings = open_volumes(volume, reading)
        values = readings[0].labels
        if labels is None:
            refuse_without_labels({"classes": classes})
            values.refuse()
        record = _record(model)
        self.slices = _slices(slices, record)
        self.classes = _classes(classes, values)
        stored = None if labels is None else open_labels(labels, volumes)
        held = hold_small([*volumes, *(stored or ())])
        volumes, stored = held[: len(volumes)], held[len(volumes) :] or None
        self.scalings = [
            # An empty tile may stand beside others; alone, all of its windows would be the same.
            own.fit_scaling(item, seed=seed, blank=len(volumes) > 1)
            for item, own in zip(volumes, readings, strict=True)
        ]
        maps: list[Volume | None] = [values.class_volume(item, self.classes) for item in stored or ()]
        keep = POSITIONS // len(volumes) if foreground else 0
        parts = [
            _part(image, classed, own, self.classes, keep, seed)
            for image, classed, own in zip(volumes, maps or [None] * len(volumes), self.scalings, strict=True)
        ]
        super().__init__(
            parts,
            slices=self.slices,
            step=readings[0].step,
            crop=crop,
            length=length,
            edge=edge,
            foreground=foreground,
            augmentation=_augmentation(augmentation, self.slices),
            scaling=(record.mean, record.std) if record else (0.0, 1.0),
            seed=seed,
            labelled=labels is not None,
        )
        if foreground and not self.has_foreground:
            raise VolumeError(
                f"{parts[0].labels.path}: holds background alone in the middle slices of its windows, so no crop can be drawn "
                f"around foreground; leave out {option('foreground')}, or check {option('label_values')}"
            )


def _record(model: nn.Module | Record | None) -> Record | None:
    if model is None or isinstance(model, Record):
        return model
    found = record_of(model)
    if found is None:
        raise ConfigError(
            "model: has no record of how its slices are scaled; call evenslice.neutralize(model) first, or leave it out "
            "for slices in 0..1"
        )
    return found


def _slices(slices: int | None, record: Record | None) -> int:
    expected = record.slices if record else slices
    if slices not in (None, expected):
        raise ConfigError(f"{option('slices', slices)}: the network takes {expected}; omit the option")
    return 3 if expected is None else expected


def _classes(classes: int | None, values: LabelValues) -> int:
    count = len(values.label_values or (0, 1)) if classes is None else whole_number("classes", classes)
    if count < 2:
        raise ConfigError(f"{option('classes', count)}: at least 2, background included")
    values.check(count)
    return count


def _part(
    image: Volume, labels: Volume | None, scaling: Scaling, classes: int, keep: int, seed: int
) -> LabelledVolume:
    """Return a volume with its labels; an index of them only if crops are drawn around the foreground."""
    index = np.zeros(classes, np.int64), (np.empty(0, np.int64),) * classes
    if labels is not None and keep:
        index = index_classes(labels, classes, keep=keep, seed=seed)
    return LabelledVolume(image.path, image, image if labels is None else labels, scaling, *index)


def _augmentation(given: Augmentation | None, slices: int) -> AugmentationConfig | None:
    """Return the augmentation that the user means; its options are checked by the class that ``train`` uses."""
    if given is None or given is False:
        return None
    from evenslice._core import load_config  # needs the extra `train`, like the next
    from evenslice.training.config import AugmentationConfig, check_missing_slices

    try:
        config = load_config({} if given is True else given, AugmentationConfig)
        check_missing_slices(config.missing_slices, slices)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{option('augmentation')}: {error}") from error
    return config
