"""One volume or several, as a user gives them: opened, with their labels and scalings."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option
from evenslice.volumes.blocks import sample_stored
from evenslice.volumes.opening import open_filled, open_labels
from evenslice.volumes.scaling import Scaling, fit_scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.volumes.opening import VolumeLike
    from evenslice.volumes.volume import Volume

__all__ = ["fit_scalings", "open_several", "open_several_labels", "refuse_equal"]


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


def fit_scalings(
    volumes: Sequence[Volume],
    given: Scaling | Sequence[Scaling] | None,
    *,
    name: str,
    intensity: tuple[float, float] | None,
    fill: float | None,
    seed: int,
) -> list[Scaling]:
    """Return the scaling of each volume, as given or fitted.

    Args:
        volumes: the volumes.
        given: one scaling for each, or one for all; None to fit them.
        name: the option that ``given`` comes from.
        intensity: the voxel values that become 0 and 1; by default percentiles of each volume.
        fill: the voxel value that replaces NaN and infinity.
        seed: random seed of the samples.

    Raises:
        ConfigError: scalings are given together with ``intensity`` or ``fill``, or are none, or not one for each volume.
        VolumeError: a volume cannot be scaled.
    """
    if given is None:
        return [fit_scaling(item, intensity=intensity, fill=fill, seed=seed) for item in volumes]
    if intensity is not None or fill is not None:
        raise ConfigError(
            f"{option('intensity')} and {option('fill')} have no effect with {option(name)}; give one or the other"
        )
    scalings: Any = list(given) if isinstance(given, list | tuple) else [given] * len(volumes)
    if not all(isinstance(item, Scaling) for item in scalings):
        raise ConfigError(
            f"{option(name, given)}: give an evenslice.Scaling for all volumes, or a list with one for each; "
            f"{option('intensity')} takes the two values themselves"
        )
    if len(scalings) != len(volumes):
        raise ConfigError(
            f"{len(scalings)} scalings for {_count(volumes)}; give one for each, or one for all"
        )
    return list(scalings)


def refuse_equal(volumes: Sequence[Volume]) -> None:
    """Raise ConfigError if two volumes hold the same voxels: they are not independent samples.

    Of volumes of more than a million voxels, a sample is compared, and only of those of equal shape and data type.

    Example:
        >>> import numpy as np
        >>> volumes = open_several([np.zeros((3, 4, 5)), np.ones((3, 4, 5)), np.zeros((3, 4, 5))], None)
        >>> refuse_equal(volumes)
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: volumes 1 and 3, <array> and <array>, hold the same voxels, and several volumes count as
        independent samples; give each once
    """
    alike = defaultdict(list)
    for number, volume in enumerate(volumes, start=1):
        alike[volume.shape, volume.dtype].append(number)
    for numbers in alike.values():
        known: dict[bytes, int] = {}
        for number in numbers if len(numbers) > 1 else ():
            content = hashlib.sha256(sample_stored(volumes[number - 1]).tobytes()).digest()
            first = known.setdefault(content, number)
            if first != number:
                raise ConfigError(
                    f"volumes {first} and {number}, {volumes[first - 1].path} and {volumes[number - 1].path}, hold the same "
                    "voxels, and several volumes count as independent samples; give each once"
                )


def _items(given: VolumeLike | Sequence[VolumeLike]) -> list[VolumeLike]:
    items: Any = list(given) if isinstance(given, list | tuple) else [given]
    if not items:
        raise ConfigError("no volume given; at least one is needed")
    return list(items)


def _count(volumes: Sequence[Volume]) -> str:
    return "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
