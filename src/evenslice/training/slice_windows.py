"""Slice windows as a data set for a training loop of one's own.

    data = SliceWindows("brain.nii.gz", "labels.nii.gz", model=network, crop=(192, 192), foreground=0.5)
    for windows, labels in DataLoader(data, batch_size=8): ...

``train`` reads its crops in the same way, from the parts of its configuration.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option, whole_number
from evenslice.neutralizing import Record, record_of
from evenslice.training.crops import CropDataset
from evenslice.volumes import (
    ClassIndex,
    LabelledVolume,
    Reading,
    check_tile,
    each_reading,
    fit_scalings,
    hold_small,
    in_plane,
    index_classes,
    open_several,
    open_several_labels,
    refuse_without_labels,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from torch import nn

    from evenslice.training.config import AugmentationConfig
    from evenslice.volumes import Edge, LabelValues, Scaling, Volume, VolumeLike

    Augmentation: TypeAlias = AugmentationConfig | Mapping[str, Any] | bool

__all__ = ["SliceWindows"]

POSITIONS = 2**18
"""Number of voxel positions kept for each foreground class, over all volumes."""


class SliceWindows(CropDataset):
    """The slice windows of volumes, as a map-style data set of PyTorch.

    Item i depends on the arguments and i alone, not on what was drawn before or on the process. Random crops are
    therefore the same in each pass through the data set: to train for 2,000 steps of 8 crops, ask for a ``length``
    of 16,000 and pass through it once. Volumes of up to 1 GiB in total are read into memory; larger ones are read piece
    by piece. It can be pickled for the workers of a ``DataLoader``.

    Args:
        volume: a volume, an array (z, y, x), a path, or several of these; for slices along another axis, one opened by
            ``open_volume`` with its ``plane``.
        labels: the class of each voxel, in volumes of the same shapes; None for windows without labels.
        slices: N, odd; by default as recorded on ``model``, else 3.
        crop: size (y, x) of random crops; a smaller plane is reflected at its borders. By default whole planes:
            item i is the window around slice i, all volumes laid end to end, and from the first again if ``length`` is
            greater.
        edge: "reflect" fills windows at the ends of a volume with the inner slices, as ``segment`` does; "valid" omits
            these windows, as ``audit`` does.
        reading: how volumes and labels are read; one for each volume where they differ in intensity or fill. The class of
            voxels with the ``ignore_label`` is -100, which PyTorch's cross entropy ignores.
        model: a neutralized network, or what ``neutralize`` returned: slices are then scaled as it expects. Without, they
            are in 0..1.
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
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite; labels do not fit it. Those
            that hold a value of no class raise it here with ``foreground``, for which all labels are read, and
            otherwise with the first item that has such a value.
        ConfigError: an option is out of range, has no effect, or differs from what is recorded on the network; or the
            network has no record.
        ModelError: ``model`` is no network.
        MissingExtraError: there is augmentation, and a package of the extra ``train`` is missing.

    Example:
        >>> image = np.random.default_rng(0).random((12, 64, 64))
        >>> data = SliceWindows(image, image > 0.9, slices=5, crop=(32, 48), foreground=1, length=100)
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
        edge: Edge = "reflect",
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
        fraction: Any = foreground
        if not isinstance(fraction, Real) or not 0 <= float(fraction) <= 1:
            raise ConfigError(f"{option('foreground', foreground)}: is a fraction of the crops, 0 to 1")
        if foreground and (crop is None or labels is None):
            missing = option("crop", [192, 192]) if crop is None else option("labels")
            raise ConfigError(
                f"{option('foreground', foreground)}: has no effect without {missing}; give both"
            )
        volumes = open_several(volume, reading.fill if isinstance(reading, Reading) else None)
        readings = each_reading(reading, volumes)
        values = readings[0].labels
        if labels is None:
            refuse_without_labels(classes=classes)
            values.refuse()
        record = _record(model)
        self.slices = _slices(slices, record)
        self.classes = _classes(classes, values)
        volumes = [in_plane(item, own.plane) for item, own in zip(volumes, readings, strict=True)]
        stored = None if labels is None else open_several_labels(labels, volumes)
        held = hold_small([*volumes, *(stored or ())])
        volumes, stored = held[: len(volumes)], held[len(volumes) :] or None
        self.scalings = fit_scalings(volumes, readings, seed=seed)
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
    index = ClassIndex(np.zeros(classes, np.int64), (np.empty(0, np.int64),) * classes)
    if labels is not None and keep:
        index = index_classes(labels, classes, keep=keep, seed=seed)
    return LabelledVolume(image.path, image, image if labels is None else labels, scaling, index)


def _augmentation(given: Augmentation | None, slices: int) -> AugmentationConfig | None:
    """Return the augmentation that the user means; its options are checked by the class that ``train`` uses."""
    if given is None or given is False:
        return None
    from evenslice._core import as_config
    from evenslice.training.config import AugmentationConfig, check_missing_slices  # need the extra `train`

    try:
        config = as_config({} if given is True else given, AugmentationConfig)
        check_missing_slices(config.missing_slices, slices)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{option('augmentation')}: {error}") from error
    return config
