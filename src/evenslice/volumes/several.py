"""One volume or several, as a user gives them: opened, with their labels and scalings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option
from evenslice.volumes.opening import open_filled, open_labels
from evenslice.volumes.reading import Reading
from evenslice.volumes.scaling import fit_scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.volumes.opening import VolumeLike
    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

__all__ = ["each_reading", "fit_scalings", "open_several", "open_several_labels", "refuse_repeated"]


def open_several(given: VolumeLike | Sequence[VolumeLike], fill: float | None) -> list[Volume]:
    """Open one volume or several, the masked voxels of arrays filled.

    Raises:
        ConfigError: there is none, or an option does not fit.
        VolumeError: one cannot be opened.

    Example:
        >>> import numpy as np
        >>> [volume.shape for volume in open_several([np.zeros((3, 4, 5)), np.zeros((1, 2, 3))], None)]
        [(3, 4, 5), (1, 2, 3)]
    """
    return [open_filled(item, fill) for item in _items(given)]


def open_several_labels(labels: VolumeLike | Sequence[VolumeLike], volumes: Sequence[Volume]) -> list[Volume]:
    """Open the label volumes of volumes, one for each.

    Raises:
        ConfigError: their number is not that of the volumes.
        VolumeError: one cannot be read, or does not have the shape or the place of its volume.
    """
    given = _items(labels)
    if len(given) != len(volumes):
        raise ConfigError(
            f"{len(given)} label volumes for {_count(volumes)}; give one for each, in the same order"
        )
    return [open_labels(item, volume) for item, volume in zip(given, volumes, strict=True)]


def each_reading(reading: Reading | Sequence[Reading] | None, volumes: Sequence[Volume]) -> list[Reading]:
    """Return how each volume is read; by default as ``Reading()`` says.

    Raises:
        ConfigError: there are several ways, but not one for each volume.
    """
    given = [reading or Reading()] if isinstance(reading, Reading | None) else list(reading)
    if len(given) == 1:
        return given * len(volumes)
    if len(given) != len(volumes):
        raise ConfigError(
            f"{option('reading')}: {len(given)} for {_count(volumes)}; give one for each, or one for all"
        )
    return given


def fit_scalings(volumes: Sequence[Volume], readings: Sequence[Reading], *, seed: int) -> list[Scaling]:
    """Return the scaling of each volume, as it is to be read.

    Raises:
        VolumeError: a volume cannot be scaled, or it is the only one and constant.
    """
    # An empty tile may stand beside others; alone, all of its windows would be the same.
    blank = len(volumes) > 1
    return [
        fit_scaling(item, intensity=own.intensity, fill=own.fill, seed=seed, blank=blank)
        for item, own in zip(volumes, readings, strict=True)
    ]


def refuse_repeated(volumes: Sequence[Volume]) -> None:
    """Raise ConfigError if a file is given twice, read in the same way: it is no second sample.

    Copies of a file are not noticed, nor are arrays that were not opened before.

    Example:
        >>> from evenslice.volumes import mni152
        >>> refuse_repeated([mni152(), mni152()])
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: ...: is given twice, and several volumes count as independent samples; give it once
    """
    known = set()
    for volume in volumes:
        # A range of slices is part of the path. An array has none.
        path = (
            os.path.realpath(volume.path)
            if isinstance(volume.location, Path)
            else volume.location or id(volume)
        )
        read = path, volume.part, volume.plane, volume.region, repr(volume.reading)
        if read in known:
            raise ConfigError(
                f"{volume.path}: is given twice, and several volumes count as independent samples; give it once"
            )
        known.add(read)


def _items(given: VolumeLike | Sequence[VolumeLike]) -> list[VolumeLike]:
    items: Any = list(given) if isinstance(given, list | tuple) else [given]
    if not items:
        raise ConfigError("no volume given; at least one is needed")
    return list(items)


def _count(volumes: Sequence[Volume]) -> str:
    return "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
