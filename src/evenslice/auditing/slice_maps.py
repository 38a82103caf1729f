"""One slice under the magnifying glass: where the network looks in its window, and what reversing the window changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import ConfigError, ModelError
from evenslice.auditing.attribution import Mirrored, attribute
from evenslice.auditing.preparation import understand
from evenslice.auditing.targets import Score
from evenslice.inference import ReadyNetwork, choose_slices
from evenslice.networks import function_name, with_gradients
from evenslice.volumes import WindowGrid, check_tile, check_window, fit_scaling, open_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.volumes import Scaling, VolumeLike

__all__ = ["SliceMaps", "map_slice"]

LARGEST_PART = 512
"""Pixels along y and x that are explained at once: the gradient of a larger part takes gigabytes."""


@dataclass(frozen=True)
class SliceMaps:
    """What a network makes of the window around one slice.

    Attributes:
        z: the slice.
        origin: (y, x) of the part of the plane that the maps cover.
        offsets: -K..K.
        saliency: (N, y, x) float32, the absolute attribution by the gradient; all values sum to 1, or are 0 where
            no pixel of the window changes the output.
        change: (y, x) which pixels get another class when the window is reversed; None for an output without a class
            for each pixel.
    """

    z: int
    origin: tuple[int, int]
    offsets: tuple[int, ...]
    saliency: NDArray[np.float32]
    change: NDArray[np.bool_] | None


@with_gradients
def map_slice(  # noqa: PLR0913  # all but three arguments have defaults and names
    model: nn.Module,
    volume: VolumeLike,
    z: int,
    *,
    slices: int | None = None,
    step: int = 1,
    scaling: Scaling | None = None,
    centre: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
) -> SliceMaps:
    """Explain the output of a network for one slice, and compare it with that for the reversed window.

    A window at an end of the volume is completed by reflection, as ``evenslice.segment`` does.

    Args:
        model: maps (batch, slices, y, x) to logits, as for ``evenslice.audit``.
        volume: the volume, an array (z, y, x), or a path.
        z: the middle slice.
        slices: N, odd; by default as recorded by ``neutralize``, else 3.
        step: distance between neighbouring slices of the window.
        scaling: maps voxel values to 0..1; by default from percentiles of the volume, as an audit does.
        centre: (y, x) of the part of a plane that is looked at, if the plane has more than ``LARGEST_PART`` pixels
            along an axis, or if ``tile`` or the network says how large the part is; by default the middle.
        tile: size (y, x) of the part; by default as large as may be, or the size the network requires.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.

    Raises:
        ConfigError: there is no such slice, or an option is out of range.
        VolumeError: the volume cannot be read, or has too few slices.
        ModelError: it is a function, the network rejects the window, or its output has no gradient.

    Example: a network that only reads the slice before the middle.
        >>> network = torch.nn.Conv2d(3, 1, 1, bias=False)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        >>> volume = np.random.default_rng(0).random((8, 32, 48))
        >>> maps = map_slice(network, volume, 4)
        >>> dict(zip(maps.offsets, maps.saliency.sum(axis=(1, 2)).round(3).tolist()))
        {-1: 1.0, 0: 0.0, 1: 0.0}
        >>> maps.change.shape
        (32, 48)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{function_name(model)} has no gradient to map; give a network, a torch.nn.Module")
    volume = open_volume(volume)
    if not 0 <= z < len(volume):
        raise ConfigError(f"{volume.path}: has no slice {z}; choose one of 0 to {len(volume) - 1}")
    slices = choose_slices(model) if slices is None else slices
    check_window(slices, 1, "reflect")
    network = ReadyNetwork(model, slices=slices, device=device, dtype="float32")
    plane = volume.shape[1:]
    tile = check_tile(tile) if tile else network.tile or _part_size(plane, network.multiple)
    y, x = (
        min(max(0, middle - size // 2), max(0, length - size))
        for middle, size, length in zip(centre or (plane[0] // 2, plane[1] // 2), tile, plane, strict=True)
    )
    grid = WindowGrid(volume, scaling or fit_scaling(volume), slices, tile, step, edge="reflect")
    returned = network.prepare(slices, tile)
    understood = understand(
        network, returned, slices=slices, tile=tile, target="auto", overlapping=None
    ).explained
    window = torch.from_numpy(grid.read(z, y, x))[None].to(network.device)
    given = attribute(network, window, target=understood)
    mirrored = attribute(Mirrored(network), window, target=understood)
    shape = min(tile[0], plane[0] - y), min(tile[1], plane[1] - x)
    inner = (..., slice(shape[0]), slice(shape[1]))
    saliency = given.attribution[0].abs()[inner].cpu().numpy()
    change = _changed(Score(network, understood), given.output, mirrored.output, tile)
    return SliceMaps(
        z=z,
        origin=(y, x),
        offsets=tuple(range(-(slices // 2), slices // 2 + 1)),
        saliency=saliency / max(float(saliency.sum(dtype=np.float64)), np.finfo(np.float32).tiny),
        change=None if change is None else change[inner],
    )


def _part_size(plane: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size (y, x) of all of a plane, or of a part of it, in multiples of what the network needs."""
    largest = LARGEST_PART // multiple * multiple or multiple
    y, x = (min(-(-length // multiple) * multiple, largest) for length in plane)
    return y, x


def _changed(
    score: Score, given: Tensor, mirrored: Tensor, tile: tuple[int, int]
) -> NDArray[np.bool_] | None:
    """Return which pixels (y, x) of a window have another class than in its mirror."""
    if not (given.is_floating_point() and given.ndim == 4):
        return None
    answers = [
        score.answers(functional.interpolate(output, size=tile, mode="bilinear", align_corners=False))
        for output in (given, mirrored)
    ]
    if answers[0] is None or answers[1] is None:
        return None
    changed = answers[0][0] != answers[1][0]
    found: NDArray[np.bool_] = (changed.any(0) if changed.ndim == 3 else changed).cpu().numpy()
    return found
