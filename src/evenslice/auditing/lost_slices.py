"""What a lost slice costs the audited network: the short form of the stress test, on a few slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice._core import ModelError, option
from evenslice.inference import Disturbances, StressedVolume, even_slices
from evenslice.networks import logits
from evenslice.volumes import IGNORED, LabelValues, check_classes, open_volume, reslice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from evenslice.volumes import Volume, WindowGrid

STRESSED_SLICES = 16
STRESSED_SIDE = 1024
"""Pixels of a slice along y and x that are predicted: the middle of a larger one, so that the time does not grow with it."""


MOST_CHECKED = 2**28
"""Voxels of labels that are all read before an audit, which takes seconds; of larger ones, those that are to be compared."""


def count_stressed(slices: int, most_windows: int) -> int:
    """Return how many slices are stressed, so that all ways of showing their windows are no more than these, but of one slice.

    Example:
        >>> count_stressed(3, 2000), count_stressed(3, 40), count_stressed(3, 1)
        (16, 2, 1)
    """
    return min(STRESSED_SLICES, max(1, most_windows // len(Disturbances(slices))))


def stressed_volumes(
    returned: Any, grids: Sequence[WindowGrid], labels: Sequence[Volume]
) -> list[StressedVolume]:
    """Return what the stress test predicts: of each volume the middle of its slices, with its labels.

    Args:
        returned: what the network returned for a window.
        grids: the volumes, with their scaling.
        labels: the class of each voxel of each volume, 0, 1, 2 ..., or ``IGNORED``.

    Raises:
        ModelError: the network returns no map of logits.
    """
    output = logits(returned)
    if output.ndim != 4 or not output.is_floating_point():
        raise ModelError(
            f"{option('labels')}: they are for measuring what a lost slice costs, for which the network must return logits "
            f"(batch, classes, y, x); it returns {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}: leave "
            "them out"
        )
    classes = max(output.shape[1], 2)
    known = LabelValues(ignore_label=IGNORED)
    return [
        StressedVolume(take_middle(grid.volume), grid.scaling, known.class_volume(take_middle(part), classes))
        for grid, part in zip(grids, labels, strict=True)
    ]


def check_labels(labels: Sequence[Volume], stressed: Sequence[StressedVolume], most_slices: int) -> None:
    """Read labels before an audit, so that one of no class is found before anything is computed.

    Args:
        labels: the class of each voxel of each volume.
        stressed: the part of them that is going to be compared, as ``stressed_volumes`` returns it; none if nothing is.
        most_slices: so many slices of it are.

    Raises:
        VolumeError: the labels hold values of no class, or cannot be read.
    """
    chosen = even_slices([len(item.volume) for item in stressed], most_slices) if stressed else []
    for number, part in enumerate(labels):
        if part.size <= MOST_CHECKED and not isinstance(part.location, str):  # which is an address
            check_classes(part)
        elif stressed and (compared := stressed[number].labels) is not None:
            for z in chosen[number]:
                compared[z]


def take_middle(volume: Volume) -> Volume:
    """Return the middle of each slice, up to ``STRESSED_SIDE`` pixels along y and x, as a volume, without reading it.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> take_middle(open_volume(np.zeros((2, 30, 3000), np.uint8))).path
        '<array>[0:2,0:30,988:2012]'
    """
    if max(volume.shape[1:]) <= STRESSED_SIDE:
        return volume
    region = [
        slice(0, length) if axis == volume.plane else _middle(length)
        for axis, length in zip("zyx", reslice(volume, "z").shape, strict=True)
    ]
    return open_volume(volume, region=region)


def _middle(length: int) -> slice:
    size = min(length, STRESSED_SIDE)
    start = (length - size) // 2
    return slice(start, start + size)
