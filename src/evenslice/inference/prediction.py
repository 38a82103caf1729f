"""Predict volumes slice by slice; all code that predicts whole volumes uses this module.

Every slice is read once, and only the slices of the current windows are held, so a volume may be larger than memory.
Planes go through the network whole if they are small enough, else in overlapping tiles that are blended. What a network returns
is checked: maps of the logits of each class.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product, repeat, takewhile
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional

from evenslice._core import ModelError, map_ahead, option, reason
from evenslice.inference.engine import EngineNetwork, wants_engine
from evenslice.inference.ready_networks import BlackBox, ReadyNetwork, to_device
from evenslice.networks import logits, predicted_classes
from evenslice.volumes import WindowGrid, check_tile, read_in_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.compute import Compute
    from evenslice.volumes import Scaling, Volume

    Network: TypeAlias = ReadyNetwork | BlackBox | EngineNetwork
    Window: TypeAlias = Sequence[NDArray[np.float32]]


def class_logits(network: torch.nn.Module, windows: Tensor) -> Tensor:
    """Run a network on windows (batch, slices, y, x) and return its logits as float32 (batch, classes, y, x).

    Raises:
        ModelError: the network does not return a map of logits for each window, or its convolutions cut off the border.

    Example:
        >>> import torch
        >>> class_logits(torch.nn.Conv2d(3, 2, 4, stride=4), torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """
    return logit_map(network(windows), len(windows), (windows.shape[-2], windows.shape[-1]))


def logit_map(returned: Any, count: int, size: tuple[int, int]) -> Tensor:
    """Return what a network returned for some windows of a size (y, x) as float32 logits (batch, classes, y, x)."""
    output = logits(returned)
    if not output.is_floating_point():
        raise ModelError(
            f"the network returns {str(output.dtype).removeprefix('torch.')}, such as class numbers; it must return "
            "logits (batch, classes, y, x)"
        )
    if output.ndim != 4 or 0 in output.shape[1:] or len(output) != count:
        raise ModelError(
            f"the network returns an output of shape {tuple(output.shape)} for {count} windows; a segmentation network must "
            "return (batch, classes, y, x), at least 1 of each"
        )
    output = output.float()
    if output.shape[2:] == size:
        return output
    if any(_cuts_border(*sides) for sides in zip(output.shape[2:], size, strict=True)):
        raise ModelError(
            f"the network returns {output.shape[2]} x {output.shape[3]} pixels for windows of {size[0]} x {size[1]}, so that "
            f"they have no places; pad its convolutions, or choose another size with {option('tile')}"
        )
    return functional.interpolate(output, size=size, mode="bilinear", align_corners=False)


def _cuts_border(returned: int, given: int) -> bool:
    """Return whether a side of an output has another length because of its border, and not because of a stride."""
    return abs(returned - given) > 1 and 2 * given < 3 * returned and 2 * returned < 3 * given


def class_map(output: Tensor, classes: int) -> NDArray[np.int64]:
    """Return the predicted class map (y, x) of logits (channels, y, x).

    Raises:
        ModelError: there are not as many channels as classes, or one for two classes.

    Example:
        >>> import torch
        >>> class_map(torch.tensor([[[-1.0, 2.0]]]), 2).tolist()
        [[0, 1]]
    """
    channels = len(output)
    if channels != classes and (channels, classes) != (1, 2):
        raise ModelError(
            f"the network gives {channels} classes, the labels have {classes}; build it with {option('classes', classes)}"
        )
    return predicted_classes(output, dim=0).cpu().numpy()


LARGEST_TILE = 1024
"""Pixels along y and x up to which a plane goes through the network as a whole."""

HELD_BYTES = 2**30
"""Stored slices that share their chunks are held up to here: 64 of 4096 x 4096 voxels of 8 bits."""

OVERLAP = 8
"""Tiles overlap their neighbours by their size divided by this number."""

BATCH_PIXELS, LARGEST_BATCH = 2**17, 16  # more leaves the cache of a processor
GPU_BATCH_PIXELS, LARGEST_GPU_BATCH = 2**23, 64

DIFFERENCE = 1e-4
"""By how much answers of OpenVINO may differ from those of PyTorch, relative to the largest."""


@dataclass(frozen=True)
class Predictor:
    """Predicts the slices of whole volumes, each from its window.

    Attributes:
        network: the network, or the function.
        slices: N, odd.
        step: distance between neighbouring slices of a window.
        tile: size (y, x) of the in-plane tiles; by default the fixed input size of the network, else the whole plane
            rounded up to a size that the network accepts; an axis of more than ``LARGEST_TILE`` pixels is covered by as
            few tiles as possible.
        batch: windows per forward pass; by default as many as have 131,072 pixels, at most 16; on a GPU 8
            million, at most 64. Fewer from where memory runs out.

    Example:
        >>> from evenslice.inference import ReadyNetwork
        >>> from evenslice.volumes import Scaling, open_volume
        >>> network = ReadyNetwork(torch.nn.Conv2d(3, 2, 1), slices=3, device="cpu", dtype="float32")
        >>> volume = open_volume(np.zeros((5, 40, 50), np.uint8))
        >>> [(z, tuple(output.shape)) for z, output in Predictor(network, 3).predict(volume, Scaling(0, 255))][-1]
        (4, (2, 40, 50))
    """

    network: Network
    slices: int
    step: int = 1
    tile: tuple[int, int] | None = None
    batch: int | None = None

    def for_planes(self, plane: tuple[int, int]) -> Predictor:
        """Return one whose tiles suit planes (y, x), unless they were chosen."""
        multiple = self.network.multiple
        even = _even_tile(plane[0], multiple), _even_tile(plane[1], multiple)
        return replace(self, tile=check_tile(self.tile) if self.tile else self.network.accepted(even))

    def prepare(self, *, probabilities: bool = False) -> int:
        """Run one window of the size of a tile through the network, and return the number of its classes.

        Args:
            probabilities: whether probabilities will be computed from its logits.

        Raises:
            ModelError: it rejects the window, or returns no map of logits.
        """
        tile = cast("tuple[int, int]", self.tile)
        returned = self.network.prepare(self.slices, tile)
        output = logit_map(returned, 1, tile)
        if probabilities or output.shape[1] == 1:
            # Of one probability, above 0 everywhere, all would be foreground; of several, a softmax makes wrong ones.
            kind = self.network.probabilities(logits(returned), self.slices, tile)
            if kind:
                raise ModelError(
                    f"the network {self.network.name} returns probabilities, where logits are needed; build it without its "
                    f"last {kind}"
                )
        return max(output.shape[1], 2)

    def predict(
        self,
        volume: Volume,
        scaling: Scaling,
        *,
        centres: Sequence[int] | None = None,
        region: tuple[slice, slice] | None = None,
        shown: Callable[[int, Window], Iterable[Window]] | None = None,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Predict the slices of a volume, in order.

        Windows at the ends of the volume are completed by reflection. A plane smaller than the tile is reflected at its
        far borders.

        Args:
            volume: the volume to predict.
            scaling: maps voxel values to 0..1.
            centres: the slices to predict, ascending; by default all.
            region: the part of the plane to predict, along y and x; by default all of it. The positions of tiles do not
                depend on it, so that regions fit together.
            shown: maps z and the N slices (y, x) of its window, scaled to 0..1, to the windows that the network is shown in
                their place; by default that window.
            convert: maps the logits (n, classes, y, x) of a batch, on the device of the network, to what is yielded of it.

        Yields:
            z and the logits (classes, y, x) of the slice, float32, on the device of the network, for each window shown. An
            output smaller than the input, as from a network with a stride, is resized bilinearly.

        Raises:
            VolumeError: the volume cannot be read, has fewer slices than a window, or holds NaN or infinity and the
                scaling has no fill value.
            ModelError: the network does not return a map of logits, or one without the border, or NaN among them, or the
                memory is too small for a single window, or for the planes and outputs of a batch.
            ConfigError: an option is out of range.
        """
        network, slices = self.network, self.slices
        centres = range(len(volume)) if centres is None else centres
        stop = min(max(centres, default=0) + slices // 2 * self.step + 1, len(volume))
        held = read_in_runs(volume, stop, HELD_BYTES)
        grid = WindowGrid(held, scaling, slices, (1, 1), self.step, edge="reflect")  # checks that windows fit
        plane = volume.shape[1:]
        region = region or (slice(0, plane[0]), slice(0, plane[1]))
        tile = self.tile or cast("tuple[int, int]", self.for_planes(plane).tile)
        batch = self.batch or _choose_batch(network, tile)
        rows, columns = (_Tiling.of(*axis, network.device) for axis in zip(plane, tile, region, strict=True))
        windows = _windows(grid, centres, (rows.extent, columns.extent))
        given = (
            (z, other, any(own is not plane for own, plane in zip(window, other, strict=True)))
            for z, window in windows
            for other in ([window] if shown is None else shown(z, window))
        )
        at_once = -(-batch // (len(rows.tiles) * len(columns.tiles)))

        def read(_: None) -> list[tuple[int, Window, bool]]:
            return list(islice(given, at_once))

        # While a GPU computes, or a server is waited for, this process reads what comes next; otherwise, both need the
        # processor.
        ahead = 1 if network.device.type == "cuda" or volume.remote else 0
        for chunk in takewhile(bool, map_ahead(read, repeat(None), threads=1, ahead=ahead)):
            planes = np.stack([plane for _, window, _ in chunk for plane in window])
            planes = planes.reshape(len(chunk), slices, *planes.shape[1:])
            outputs = _predict_planes(network, planes, rows, columns, batch)[..., rows.inner, columns.inner]
            _refuse_nan(outputs, chunk, volume)
            yield from zip(
                (z for z, *_ in chunk), outputs if convert is None else convert(outputs), strict=True
            )

    def with_engine(self, compute: Compute, volume: Volume, scaling: Scaling, windows: int) -> Predictor:
        """Return one whose network OpenVINO runs, if that is asked for or worth it and its answers are those of PyTorch.

        Args:
            compute: which engine, and whether to say why it is not used.
            volume: a volume that will be predicted.
            scaling: maps voxel values to 0..1.
            windows: how many will be predicted, of the volume's planes.

        Raises:
            ConfigError, MissingExtraError: see ``wants_engine``.
        """
        network, tile = self.network, cast("tuple[int, int]", self.for_planes(volume.shape[1:]).tile)
        if not wants_engine(network, compute, windows * math.prod(volume.shape[1:])):
            return self
        exact = cast("ReadyNetwork", network).in_precision(torch.float32)
        grid = WindowGrid(volume, scaling, self.slices, tile, self.step, edge="reflect")
        count = min(self.batch or _choose_batch(network, tile), len(volume))
        first = torch.from_numpy(np.stack([grid.read(z, 0, 0) for z in range(count)]))
        try:
            converted = EngineNetwork.of(exact, first[:1])
            for given in (network.trial(self.slices, tile), first):
                one, other = _run(exact, given), _run(converted, given)
                if not bool((one - other).abs().max() <= DIFFERENCE * one.abs().max()):
                    raise ModelError("it would answer otherwise than PyTorch")
            return replace(self, network=converted.in_precision(network.dtype))
        except Exception as failed:  # noqa: BLE001  # a conversion may raise anything
            _say(f"{network.name}: runs in PyTorch, not in OpenVINO: {reason(failed)}", compute.progress)
            return self

    def tell_rounding(self, volume: Volume, scaling: Scaling, progress: bool | None) -> None:
        """Say on standard error in how many voxels of the first two planes a precision below float32 changes labels.

        Args:
            volume: the volume that will be predicted.
            scaling: maps voxel values to 0..1.
            progress: False to say nothing.
        """
        network = self.network
        if isinstance(network, BlackBox) or network.dtype == torch.float32 or progress is False:
            return
        rounded, exact = (
            torch.stack(
                [
                    predicted_classes(output, dim=0)
                    for _, output in predictor.predict(volume, scaling, centres=range(len(volume))[:2])
                ]
            )
            for predictor in (self, replace(self, network=network.in_precision(torch.float32)))
        )
        changed, foreground = int((rounded != exact).sum()), int(((rounded > 0) | (exact > 0)).sum())
        share = f", {100 * changed / foreground:.3g} % of the foreground" if foreground else ""
        name, shares = str(network.dtype).removeprefix("torch."), f"{100 * changed / exact.numel():.3g} %"
        _say(
            f"{name}: labels differ from float32 in {shares} of the voxels of the first {len(exact)} planes{share}",
            progress,
        )


def _say(line: str, progress: bool | None) -> None:
    """Write a line to standard error, unless nothing is to be said."""
    if progress is not False:
        with suppress(OSError):  # as of lines of progress
            sys.stderr.write(f"{line}\n")


def _refuse_nan(outputs: Tensor, shown: Sequence[tuple[int, Window, bool]], volume: Volume) -> None:
    """Raise ModelError for the first window with NaN among its logits, which would pass for class 0.

    Infinite logits are accepted: -inf is that of a class that a network rules out.

    Args:
        outputs: the logits (windows, classes, y, x).
        shown: the middle slice of each window, the window, and whether it is disturbed.
        volume: the volume.
    """
    # Far cheaper than to look at each logit; but the sum of both infinities is NaN, too.
    for index in outputs.sum(dim=(1, 2, 3)).isnan().nonzero().flatten().tolist():
        if bool(outputs[index].isnan().any()):
            z, _, disturbed = shown[index]
            raise ModelError(
                f"the network returns NaN for {'a disturbed window of ' * disturbed}slice {z} of {volume.path}; "
                "it has to return numbers, for a blank slice too"
            )


def _choose_batch(network: Network, tile: tuple[int, int]) -> int:
    """Return the number of windows per forward pass, see ``Predictor``."""
    gpu = network.device.type == "cuda"
    most, pixels = (LARGEST_GPU_BATCH, GPU_BATCH_PIXELS) if gpu else (LARGEST_BATCH, BATCH_PIXELS)
    return max(1, min(most, pixels // math.prod(tile)))


def even_slices(depths: Sequence[int], most: int | None) -> list[list[int]]:
    """Choose at most so many evenly spaced slices of volumes laid end to end; return them by volume, ascending.

    Args:
        depths: number of slices of each volume.
        most: the largest number; None for all.

    Example:
        >>> even_slices([6, 4], 4)
        [[1, 3], [0, 2]]
    """
    total, starts = sum(depths), np.cumsum([0, *depths[:-1]]).tolist()
    number = total if most is None else min(most, total)
    places = ((np.arange(number) + 0.5) * total // number).astype(int).tolist()
    return [
        [place - start for place in places if start <= place < start + depth]
        for start, depth in zip(starts, depths, strict=True)
    ]


def _even_tile(length: int, multiple: int) -> int:
    """Return the smallest size at which the fewest possible tiles cover an axis.

    Tiles of the largest size would overlap by far more than necessary: three of 1,024 pixels cover 2,048, and so do
    three of 768.
    """
    tiles = 1
    while (size := math.ceil(length / (tiles - (tiles - 1) / OVERLAP))) > LARGEST_TILE:
        tiles += 1
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class _Tiling:
    """The tiles along one axis that a region needs.

    Tiles overlap by an eighth of their size. Their weights fade linearly over the overlap, since a tile sees less
    context near its border, and sum to 1 at each pixel.

    Attributes:
        extent: the range to read; it may end beyond the plane.
        tiles: the position of each tile within the extent, and its weights (tile,).
        inner: the position of the region within the extent.
    """

    extent: slice
    tiles: list[tuple[slice, Tensor]]
    inner: slice

    @classmethod
    def of(cls, length: int, tile: int, region: slice, device: torch.device) -> _Tiling:
        """Cover an axis with tiles, and keep those that touch the region; their weights are on the device."""
        length = max(length, tile)
        overlap = tile // OVERLAP
        distance = torch.arange(1, tile + 1, dtype=torch.float32, device="cpu")
        fade = torch.minimum(distance, distance.flip(0)).clamp_max(overlap + 1)
        last = length - tile
        origins = [*range(0, last, tile - overlap), last]
        total = torch.zeros(length, dtype=torch.float32, device="cpu")
        for origin in origins:
            total[origin : origin + tile] += fade
        needed = [origin for origin in origins if origin < region.stop and origin + tile > region.start]
        first = needed[0]
        return cls(
            extent=slice(first, needed[-1] + tile),
            tiles=[
                (
                    slice(origin - first, origin - first + tile),
                    (fade / total[origin : origin + tile]).to(device),
                )
                for origin in needed
            ],
            inner=slice(region.start - first, region.stop - first),
        )


def _windows(
    grid: WindowGrid, centres: Sequence[int], extent: tuple[slice, slice]
) -> Iterator[tuple[int, Window]]:
    """Yield each centre z and the N slices (y, x) of the window around it, reading each slice once, in ascending order."""
    (y, x), reach = extent, grid.slices // 2 * grid.step
    single = replace(grid, slices=1, tile=(y.stop - y.start, x.stop - x.start))
    planes: dict[int, NDArray[np.float32]] = {}
    for z in centres:
        # With those between the slices of this window, which the next ones show.
        needed = range(max(z - reach, 0), min(z + reach + 1, len(grid.volume)))
        planes = {i: planes[i] if i in planes else single.read(i, y.start, x.start)[0] for i in needed}
        yield z, [planes[i] for i in grid.slices_at(z).tolist()]


@torch.no_grad()
def _predict_planes(
    network: Network, windows: NDArray[np.float32], rows: _Tiling, columns: _Tiling, batch: int
) -> Tensor:
    """Return the logits (planes, classes, y, x) of planes (planes, N, y, x), which have the extent of the tiles."""
    count, _, height, width = windows.shape
    what = f"{count} windows or their outputs, of {height} x {width} pixels, do not fit"
    with network.reporting(what):
        planes = to_device(windows, network.device, network.layout)
        if len(rows.tiles) == len(columns.tiles) == 1:
            return _run(network, planes)
        total = torch.zeros((), device=network.device)
        places = product(range(len(planes)), rows.tiles, columns.tiles)
        while chunk := list(islice(places, batch)):
            tiles = torch.stack([planes[index, :, y, x] for index, (y, _), (x, _) in chunk])
            parts = _run(network, tiles.contiguous(memory_format=network.layout))
            if total.ndim == 0:  # only now is the number of classes known
                total = parts.new_zeros(count, parts.shape[1], height, width)
            for (index, (y, fade_y), (x, fade_x)), part in zip(chunk, parts, strict=True):
                total[index, :, y, x] += part * (fade_y[:, None] * fade_x).to(part.dtype)
    return total


@torch.no_grad()
def _run(network: Network, windows: Tensor) -> Tensor:
    """Return the logits (batch, classes, y, x) of windows (batch, N, y, x), however many go into the memory at once."""
    parts = network.batches.run(
        lambda part: class_logits(network, windows[part]), len(windows), (network.dtype, *windows.shape[1:])
    )
    if len(parts) == 1:
        return parts[0]
    with network.reporting(f"the outputs of {len(windows)} windows do not fit"):
        return torch.cat(parts)
