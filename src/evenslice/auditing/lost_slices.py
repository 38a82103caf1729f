"""What a lost slice costs the audited network: the short form of the stress test, on a few slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice._core import ModelError, option
from evenslice.inference import StressedVolume, stress
from evenslice.networks import logits
from evenslice.volumes import IGNORED, LabelValues, open_volume, reslice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from evenslice.inference import BlackBox, ReadyNetwork
    from evenslice.results import StressSummary
    from evenslice.volumes import Volume, WindowGrid

__all__ = ["measure_loss", "take_middle"]

STRESSED_SLICES = 16
STRESSED_SIDE = 1024
"""Pixels of a slice along y and x that are predicted: the middle of a larger one, so that the time does not grow with it."""


def measure_loss(
    network: ReadyNetwork | BlackBox,
    returned: Any,
    grids: Sequence[WindowGrid],
    labels: Sequence[Volume],
    *,
    tile: tuple[int, int] | None,
    batch: int | None,
    seed: int,
    progress: bool | None,
) -> StressSummary:
    """Measure the Dice of a network when neighbouring slices are lost or damaged; see ``evenslice.inference.stress``.

    Args:
        network: ready to run.
        returned: what it returned for a window.
        grids: the volumes, with their scaling and the size and step of windows.
        labels: the class of each voxel of each volume, 0, 1, 2 ..., or ``IGNORED``.
        tile: size (y, x) of the in-plane tiles that the user asked for; None for whole slices.
        batch: windows per pass, likewise; None for as many as suit the network.
        seed: random seed of the noise.
        progress: show a progress bar.

    Raises:
        ModelError: the network returns no map of logits.
        VolumeError: the labels hold values of no class.
        ConfigError: a window has one slice.
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
    volumes = [
        StressedVolume(take_middle(grid.volume), grid.scaling, known.class_volume(take_middle(part), classes))
        for grid, part in zip(grids, labels, strict=True)
    ]
    found = stress(
        network,
        volumes,
        slices=grids[0].slices,
        step=grids[0].step,
        most_slices=STRESSED_SLICES,
        tile=tile,
        batch=batch,
        seed=seed,
        progress=progress,
    )
    return found.summary()


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
