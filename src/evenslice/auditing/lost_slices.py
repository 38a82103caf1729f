"""What a lost slice costs the audited network: the short form of the stress test, on a few slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.inference import StressedVolume, stress
from evenslice.networks import logits
from evenslice.volumes import IGNORED, class_volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from evenslice.auditing.measurer import Network
    from evenslice.results import StressSummary
    from evenslice.volumes import Volume, WindowGrid

__all__ = ["measure_loss"]

STRESSED_SLICES = 16


def measure_loss(
    network: Network,
    returned: Any,
    grids: Sequence[WindowGrid],
    labels: Sequence[Volume],
    *,
    seed: int,
    progress: bool | None,
) -> StressSummary:
    """Measure the Dice of a network when neighbouring slices are lost or damaged; see ``evenslice.inference.stress``.

    Args:
        network: ready to run.
        returned: what it returned for a window.
        grids: the volumes, with their scaling and the size and step of windows.
        labels: the class of each voxel of each volume, 0, 1, 2 ..., or ``IGNORED``.
        seed: random seed of the noise.
        progress: show a progress bar.

    Raises:
        ModelError: the network returns no map of logits.
        VolumeError: the labels hold values of no class.
        ConfigError: a window has one slice.
    """
    output = logits(returned)
    classes = max(output.shape[1], 2) if output.ndim > 1 else 2
    volumes = [
        StressedVolume(grid.volume, grid.scaling, class_volume(part, classes, ignore=IGNORED))
        for grid, part in zip(grids, labels, strict=True)
    ]
    found = stress(
        network,
        volumes,
        slices=grids[0].slices,
        step=grids[0].step,
        most_slices=STRESSED_SLICES,
        seed=seed,
        progress=progress,
    )
    return found.summary()
