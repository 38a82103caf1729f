"""One slice explained: what each slice of its window adds to the answer, or takes from it, and what reversing it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from evenslice._core import ConfigError, option, whole_number
from evenslice.auditing.attribution import Score, attribute, choose_method, parse_target, understand
from evenslice.auditing.sampling import corner_of
from evenslice.inference import Compute, Segmenter, as_segmenter, make_ready
from evenslice.report import explanation_html, map_line, map_shares
from evenslice.volumes import Reading, WindowGrid, check_tile

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from evenslice.auditing.attribution import Target
    from evenslice.volumes import VolumeLike

LARGEST_PART = 512
"""Pixels along y and x that are explained at once: the gradient of a larger part takes gigabytes."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer of a network for one slice, and how much each slice of the window adds to it.

    In a notebook, it shows itself as a picture.

    Attributes:
        z: the slice.
        origin: (y, x) of the part of the plane that the maps cover.
        offsets: -K..K.
        window: (N, y, x) float32, the slices in 0..1.
        maps: (N, y, x) float32; above 0 where a pixel adds to the explained output (for a segmenter, the log-odds of
            the predicted classes, summed over the explained pixels), below 0 where it takes away.
        answer: (y, x) the predicted class of each pixel; None for an output without a class for each pixel, or with
            classes that overlap.
        change: (y, x) which pixels get another class when the window is reversed; None likewise.
        method: the attribution method.
        baseline: the reference of the method; None for a method without one.

    Example:
        >>> network = torch.nn.Conv2d(3, 2, 3, padding=1)
        >>> found = explain(network, np.random.default_rng(0).random((8, 32, 48)), 4)
        >>> found.offsets, found.maps.shape, found.answer.shape
        ((-1, 0, 1), (3, 32, 48), (32, 48))
        >>> found.caption[:66]
        'integrated gradients: what each pixel adds to the answer (or takes'
    """

    z: int
    origin: tuple[int, int]
    offsets: tuple[int, ...]
    window: NDArray[np.float32]
    maps: NDArray[np.float32]
    answer: NDArray[np.int64] | None
    change: NDArray[np.bool] | None
    method: str
    baseline: str | None

    @property
    def caption(self) -> str:
        """The method and the meaning of its maps, in a sentence."""
        return map_line(self.method, self.baseline)

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of the absolute map that each slice gets, after smoothing by 2 pixels; all 0 if no pixel matters."""
        return map_shares(self.maps)

    def __repr__(self) -> str:
        shares = " ".join(f"{share:.2f}" for share in self.shares)
        return f"<Explanation of slice {self.z} by {self.method}: shares {shares}>"

    def _repr_html_(self) -> str:  # in a notebook
        return explanation_html(
            f"Slice {self.z}", self.caption, self.offsets, (self.window * 255).astype(np.uint8), self.maps
        )


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def explain(
    model: nn.Module | Callable[[Any], Any] | Segmenter,
    volume: VolumeLike,
    z: int,
    *,
    slices: int | None = None,
    method: str | None = None,
    baseline: str | None = None,
    target: Target = "auto",
    region: ArrayLike | None = None,
    at: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    reading: Reading | None = None,
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> Explanation:
    """Explain the answer of a network for one slice: how much each slice of its window adds or takes away.

    The default method found the slice with the evidence most often in planted evidence: integrated gradients from a
    window whose slices all are the middle one. The question is how the neighbours change the answer to the middle
    slice, so the path starts there; the maps sum to that change. Functions have no gradient: each neighbour is
    replaced by the middle slice instead, and the map shows where the answer changes.

    A window at an end of the volume is completed by reflection, as ``evenslice.segment`` does.

    Args:
        model: maps (batch, slices, y, x) to logits, as for ``evenslice.audit``, or any function, or either in a
            ``Segmenter``.
        volume: the volume, an array (z, y, x), or a path.
        z: the middle slice.
        slices: N, odd; by default from the network's record, the function or the segmenter, else 3.
        method: the attribution method, one of ``evenslice.auditing.METHODS``.
        baseline: "middle" or "gray", the reference of "integrated_gradients" and "occlusion"; by default the middle
            slice in place of all, but gray if you ask for occlusion by name.
        target: the output to explain, as for ``evenslice.audit`` but for "labels".
        region: (y, x) of the volume's plane, true at the pixels whose answer is explained; by default all.
        at: (y, x) of the centre of the explained part of the plane, if it is not the whole plane; by default the
            centre of the region, or of the plane.
        tile: size (y, x) of the part; by default the segmenter's crop, else up to 512 x 512 of the plane, or the size
            the network requires.
        reading: how to read the volume; by default the segmenter's.
        compute: the device and the data type of the network's passes.

    Raises:
        ConfigError: there is no such slice, method or class, or an option is out of range or has no effect.
        VolumeError: the volume cannot be read, or has too few slices.
        ModelError: the network rejects the window, or its output has no gradient.

    Example: a network whose answer is the difference of the neighbours, asked about one pixel.
        >>> network = torch.nn.Conv2d(3, 1, 1, bias=False)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([-1.0, 0, 1.0]).view(1, 3, 1, 1))
        >>> volume = np.zeros((3, 32, 32))
        >>> volume[2, 4, 4], volume[0, 8, 8] = 0.5, 1
        >>> region = np.zeros((32, 32), bool)
        >>> region[4, 4] = True
        >>> found = explain(network, volume, 1, region=region, reading=Reading(intensity=(0, 1)))
        >>> found.shares, float(found.maps[2, 4, 4])
        ((0.0, 0.0, 1.0), 0.5)
    """
    segmenter = as_segmenter(model, slices, reading)
    model, slices, reading = segmenter.network, segmenter.slices, segmenter.reading
    compute.refuse("engine", "batch", "workers", "scheduler")
    volume, z = reading.open(volume), whole_number("z", z, least=0)
    if z >= len(volume):
        raise ConfigError(f"{volume.path}: has no slice {z}; choose one of 0 to {len(volume) - 1}")
    network = make_ready(model, slices, compute)
    plane = volume.shape[1:]
    mask = None if region is None else np.asarray(region, bool)
    if mask is not None and (mask.shape != plane or not mask.any()):
        raise ConfigError(f"{option('region')}: give a mask of shape {plane} with at least one pixel")
    tile = tile or segmenter.crop
    tile = check_tile(tile) if tile else network.accepted(_part_size(plane, network.multiple))
    inside = () if mask is None else np.nonzero(mask)
    y, x = corner_of("at", at or [int(where.min() + where.max()) // 2 for where in inside], tile, plane)
    grid = WindowGrid(volume, reading.fit_scaling(volume), slices, tile, reading.step, edge="reflect")
    returned = network.prepare(slices, tile)
    target = parse_target(str(target))
    if target == "labels":
        raise ConfigError(
            f"{option('target', target)}: no labels are read here; choose 'predicted' or a class number"
        )
    overlapping = None if target == "sum" else reading.overlapping
    understood = understand(network, returned, grid, target, overlapping)
    method, baseline = choose_method(model, method, baseline, gradient=understood.gradient)
    window = torch.from_numpy(grid.read(z, y, x))[None].to(network.device)
    inner = (..., slice(min(tile[0], plane[0] - y)), slice(min(tile[1], plane[1] - x)))
    counted = None
    if mask is not None:  # the tile may reach beyond the plane
        padded = np.pad(mask, [(0, side) for side in tile])[y : y + tile[0], x : x + tile[1]]
        if not padded.any():
            raise ConfigError(
                f"{option('region')}: no pixel lies in the explained part; move it with {option('at')}"
            )
        counted = torch.from_numpy(padded)[None].to(network.device)
    score = Score(network, understood, region=counted)
    found = attribute(score, window, method=method, baseline=baseline)
    answers = _answers(score, window, tile)
    given, mirrored = (None, None) if answers is None else (part[inner] for part in answers)
    return Explanation(
        z=z,
        origin=(y, x),
        offsets=tuple(range(-(slices // 2), slices // 2 + 1)),
        window=window[0][inner].cpu().numpy(),
        maps=found[0][inner].cpu().numpy(),
        answer=given,
        change=None if given is None else given != mirrored,
        method=method,
        baseline=baseline,
    )


def _part_size(plane: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size (y, x) of all of a plane, or of a part of it, in multiples of what the network needs."""
    largest = LARGEST_PART // multiple * multiple or multiple
    y, x = (min(-(-length // multiple) * multiple, largest) for length in plane)
    return y, x


@torch.no_grad()
def _answers(score: Score, window: Tensor, tile: tuple[int, int]) -> list[NDArray[np.int64]] | None:
    """Return the classes (y, x) that are predicted for a window and for its mirror; None if pixels have no one class."""
    found = []
    for part in (window, window.flip(1)):
        output = score.output(part)
        if output.is_floating_point() and output.ndim == 4:
            output = functional.interpolate(output, size=tile, mode="bilinear", align_corners=False)
        answer = score.answers(output)
        if answer is None or answer.dtype == torch.bool or answer.shape[1:] != tile:
            return None
        found.append(answer[0].cpu().numpy())
    return found
