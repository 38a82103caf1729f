"""Windows are drawn, read and measured, in this process or on the workers of a cluster.

    for batch in measure_batches(sample, lambda: 8, measurer, client=None):
        ...

The windows of all volumes, every tile at every depth, are one population. They are read in a random order without
replacement in which every window has the same chance to be among the first n, whatever n is, while those n are spread
over volumes, depth and plane in proportion (``evenslice.volumes.spread_index``). In this process the next batch is read
while the network computes; each worker of a cluster receives the measurer once.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_right
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, VolumeError, map_ahead, map_in_order, option
from evenslice.auditing.attribution import attribute
from evenslice.auditing.explaining import NotFiniteError
from evenslice.inference import keep_sides, to_device
from evenslice.networks import (
    input_multiple,
    input_size,
)
from evenslice.results import ExampleWindows, Measurements, next_look
from evenslice.volumes import check_tile, fingerprint, fit_tile, modified, spread_index

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.explaining import Explainer
    from evenslice.auditing.options import Sampling
    from evenslice.volumes import Volume, WindowGrid

    Function: TypeAlias = Callable[[Any], Any]

EXAMPLES = 4
MOST_OF_EXAMPLES = 2**27  # bytes that they may take: results of a few audits are read back together


@dataclass(frozen=True)
class WindowBatch:
    """Windows to measure in one pass.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        pictures: number of windows to keep as pictures.
    """

    places: NDArray[np.int64]
    pictures: int


@dataclass(frozen=True)
class WindowSample:
    """The windows of several volumes in random order.

    Attributes:
        grids: the windows of each volume.
        sampling: how many of them are read, and the seed of their order.
    """

    grids: list[WindowGrid]
    sampling: Sampling

    @property
    def population(self) -> list[int]:
        """Number of windows in each volume."""
        return [len(grid) for grid in self.grids]

    @property
    def limit(self) -> int:
        """Largest number of windows to read."""
        return min(sum(self.population), self.sampling.max_windows)

    def next_look(self, read: int) -> int:
        """Return the number of windows after which an audit that has read some looks at what it knows."""
        look = next_look(max(read, min(self.sampling.min_windows, self.limit) - 1))
        if read < self.sampling.min_windows < look:
            look = self.sampling.min_windows
        return min(look, self.limit)

    def batches(self, size: Callable[[], int]) -> Iterator[WindowBatch]:
        """Yield the windows in batches; ``size`` is asked for the largest size of each.

        A batch ends where the audit looks, so that what it finds does not depend on the size of batches.
        """
        read = 0
        while read < self.limit:
            stop = min(read + size(), self.next_look(read))
            places = np.array([self._place(number) for number in range(read, stop)], dtype=np.int64)
            yield WindowBatch(places, pictures=min(max(self._examples() - read, 0), stop - read))
            read = stop

    def _place(self, number: int) -> tuple[int, int, int, int]:
        """Return volume, z, y, x of a window."""
        ends = list(accumulate(self.population))
        index = spread_index(number, ends[-1], self.sampling.seed)
        volume = bisect_right(ends, index)
        grid = self.grids[volume]
        return (volume, *grid.place(index - (ends[volume] - len(grid))))

    def _examples(self) -> int:
        """Return how many windows to keep as pictures: those of few large ones, a byte and two float32 for each voxel."""
        grid = self.grids[0]
        return min(EXAMPLES, MOST_OF_EXAMPLES // (9 * grid.slices * grid.tile[0] * grid.tile[1]))


def corner_of(
    name: str, centre: Sequence[int] | None, tile: tuple[int, int], plane: tuple[int, int]
) -> tuple[int, int]:
    """Return the corner (y, x) of the tile around a pixel of a plane, or in its middle, as far inside as it fits.

    Raises:
        ConfigError: the option ``name`` gives a pixel outside of the plane.

    Example:
        >>> corner_of("at", (0, 90), (32, 32), (20, 100)), corner_of("at", None, (32, 32), (64, 64))
        ((0, 68), (16, 16))
    """
    y, x = centre or (plane[0] // 2, plane[1] // 2)
    if not (0 <= y < plane[0] and 0 <= x < plane[1]):
        raise ConfigError(
            f"{option(name, (y, x))}: y, x lies outside of the plane; give a pixel of {plane[0]} x {plane[1]}"
        )
    return (
        max(0, min(y - tile[0] // 2, plane[0] - tile[0])),
        max(0, min(x - tile[1] // 2, plane[1] - tile[1])),
    )


def choose_tile(model: nn.Module | Function, volumes: list[Volume]) -> tuple[int, int]:
    """Return the tile (y, x) that a network or function insists on, or one that fits the smallest volume."""
    network = model if isinstance(model, nn.Module) else None
    fixed = getattr(model, "tile", None) if network is None else input_size(network)
    if fixed is not None:
        return check_tile(fixed)
    smallest = (min(volume.shape[1] for volume in volumes), min(volume.shape[2] for volume in volumes))
    tile = fit_tile(smallest, multiple=32 if network is None else input_multiple(network))
    return tile if network is not None else keep_sides(model, tile)


_FOUND: dict[tuple[str, str], str | None] = {}
"""What a process has found of each path and stamp: the fingerprint of a file that is another, or a copy."""


def stamps_of(volumes: Sequence[Volume]) -> dict[str, str]:
    """Return when the files of volumes were modified, by path; not of those at addresses and arrays in memory."""
    return {volume.path: stamp for volume in volumes if (stamp := modified(volume)) is not None}


def copies_of(volumes: Sequence[Volume], stamps: Mapping[str, str]) -> dict[str, str]:
    """Return, on a worker, the fingerprints of files with other times of modification, by path.

    Raises:
        VolumeError: a file is missing here.
    """
    found = {}
    for volume in volumes:
        if (stamp := stamps.get(volume.path)) is not None:
            if (volume.path, stamp) not in _FOUND:
                _FOUND[volume.path, stamp] = _fingerprint_of_copy(volume, stamp)
            if (content := _FOUND[volume.path, stamp]) is not None:
                found[volume.path] = content
    return found


def _fingerprint_of_copy(volume: Volume, stamp: str) -> str | None:
    """Return the fingerprint of a volume on a worker; None if its files are those with this stamp."""
    try:
        return None if modified(volume) == stamp else fingerprint(volume)
    except VolumeError as error:
        raise VolumeError(
            f"{volume.path}: is not there, or cannot be read, on the worker {platform.node()}; all workers must find it under "
            "this path"
        ) from error


def refuse_other_content(volumes: Sequence[Volume], copies: Mapping[str, str], known: dict[str, str]) -> None:
    """Raise VolumeError if what a worker has found under the path of a volume has other content.

    Args:
        volumes: as the command found them.
        copies: what ``copies_of`` returned on a worker.
        known: the fingerprints of the volumes that were needed so far, by path; others are added.
    """
    for volume in (volume for volume in volumes if volume.path in copies):
        if volume.path not in known:
            known[volume.path] = fingerprint(volume)
        if copies[volume.path] != known[volume.path]:
            raise VolumeError(
                f"{volume.path}: has other content on a worker than here; all workers must find the same file under this path"
            )


AHEAD = 1  # batches that are read while one is measured; those of an audit that stops are read for nothing

_ALONE = threading.Lock()
"""The threads of a Dask worker share one network."""


@dataclass(frozen=True)
class MeasuredBatch:
    """What an audit keeps of a batch: a row of numbers for each window, and the pictures of some.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        rows: the fields of ``Measurements``, of the parts of the batch that fitted into the memory at once.
        images: (pictures, N, y, x) the first windows.
        saliency: (pictures, N, y, x) their absolute attribution divided by its sum.
        maps: (pictures, N, y, x) what each of their pixels adds to the answer, or takes from it.
        device: where they were measured.
    """

    places: NDArray[np.int64]
    rows: list[dict[str, NDArray[Any]]]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]
    maps: NDArray[np.float32]
    device: str


@dataclass(frozen=True)
class Measurer:
    """Everything needed to measure a batch.

    Attributes:
        explainer: what is asked of the network.
        grids: the windows of each volume.
        labels: the label map of each volume, for the target "labels".
    """

    explainer: Explainer
    grids: list[WindowGrid]
    labels: list[Volume] | None

    @property
    def volumes(self) -> list[Volume]:
        """All volumes that are read, of labels too."""
        return [*(grid.volume for grid in self.grids), *(self.labels or [])]

    def read(self, batch: WindowBatch) -> _ReadBatch:
        """Read the windows of a batch, several at once if a server sends them; safe in any thread."""
        threads = min(len(batch.places), *(grid.reads_at_once for grid in self.grids))
        ahead = threads if threads > 1 else 0
        read = list(map_ahead(self._read_one, batch.places.tolist(), threads=threads, ahead=ahead))
        maps = [found for _, found in read if found is not None]
        return _ReadBatch(batch, np.stack([window for window, _ in read]), np.stack(maps) if maps else None)

    def _read_one(self, place: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Read a window (N, y, x), and the label map (y, x) of its middle slice."""
        volume, z, y, x = place
        grid, labels = self.grids[volume], self.labels
        return grid.read(z, y, x), None if labels is None else grid.read_labels(labels[volume], z, y, x)

    def measure(self, read: _ReadBatch) -> MeasuredBatch:
        """Measure windows that were read.

        Raises:
            ModelError: the network returns NaN or infinity for a window, or has such a gradient.
        """
        network, batch = self.explainer.network, read.batch
        windows = to_device(read.windows, network.device)
        labels = None if read.labels is None else to_device(read.labels, network.device)

        def compute(part: slice) -> tuple[dict[str, NDArray[Any]], Tensor]:
            try:
                rows, saliency = self.explainer.rows(windows[part], None if labels is None else labels[part])
            except NotFiniteError as error:
                raise self._not_finite(error, batch.places[part][error.row].tolist()) from error
            places = {"volume": batch.places[part, 0], "position": batch.places[part, 1:]}
            return places | rows, saliency[: max(batch.pictures - part.start, 0)].cpu()

        parts = network.batches.run(compute, len(windows), ("measure", network.dtype, *windows.shape[1:]))
        saliency = torch.cat([found for _, found in parts])
        total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return MeasuredBatch(
            places=batch.places,
            rows=[rows for rows, _ in parts],
            images=(windows[: batch.pictures] * 255).round().byte().cpu().numpy(),
            saliency=(saliency / total).numpy(),
            maps=self._maps(windows[: batch.pictures], None if labels is None else labels[: batch.pictures]),
            device=str(network.device),
        )

    def _maps(self, windows: Tensor, labels: Tensor | None) -> NDArray[np.float32]:
        """Return what each pixel of windows adds to the answer, or takes from it."""
        if not len(windows):
            return np.zeros(windows.shape, np.float32)
        explainer = self.explainer
        method, baseline = explainer.maps
        found = attribute(
            explainer.network,
            windows,
            method=method,
            baseline=baseline,
            target=replace(explainer.explained, margin=(0.0, 0.0)),
            labels=labels,
            seed=explainer.seed,
        )
        return found.attribution.cpu().numpy()

    def _not_finite(self, error: NotFiniteError, place: Sequence[int]) -> ModelError:
        volume, *where = place
        path = self.grids[volume].volume.path
        advice = "it has to return finite numbers"
        if self.explainer.network.dtype.itemsize < 4:
            advice = f"compute in single precision with {option('dtype', 'float32')}"
        elif "returns" not in error.what:
            advice = f"use {option('method', 'occlusion')}"
        return ModelError(
            f"the network {error.what} for the window at z, y, x = {tuple(where)} of {path}; {advice}"
        )


@dataclass(frozen=True)
class _ReadBatch:
    """Windows (batch, N, y, x) in 0..1 and label maps (batch, y, x) as they were read, in memory."""

    batch: WindowBatch
    windows: NDArray[np.float32]
    labels: NDArray[np.int64] | None


def measure_batches(
    sample: WindowSample, size: Callable[[], int], measurer: Measurer, *, client: Any
) -> Generator[MeasuredBatch]:
    """Measure the batches of a sample in order.

    Args:
        sample: the windows.
        size: returns how many of them a batch has at most.
        measurer: of the audit.
        client: client of a Dask cluster, or None for this process.
    """
    if client is None:
        with closing(map_ahead(measurer.read, sample.batches(size), threads=1, ahead=AHEAD)) as reading:
            yield from map(measurer.measure, reading)
        return
    volumes, fingerprints = measurer.volumes, dict[str, str]()
    measure = partial(_measure_on_worker, stamps=stamps_of(volumes))  # which reads for itself
    with closing(map_in_order(measure, sample.batches(size), client, common=measurer)) as measured:
        for found, copies in measured:
            refuse_other_content(volumes, copies, fingerprints)
            yield found


def _measure_on_worker(
    batch: WindowBatch, measurer: Measurer, stamps: Mapping[str, str]
) -> tuple[MeasuredBatch, dict[str, str]]:
    """Measure a batch; return it, and the fingerprints of files that are copies."""
    copies, read = copies_of(measurer.volumes, stamps), measurer.read(batch)
    with _ALONE:
        return measurer.measure(read), copies


def collect_measurements(batches: Sequence[MeasuredBatch]) -> Measurements:
    """Return the measurements of all windows, in the order in which they were read."""
    return Measurements.joined([rows for batch in batches for rows in batch.rows])


def collect_examples(batches: Sequence[MeasuredBatch]) -> ExampleWindows:
    """Return the windows for the report."""
    places = np.concatenate([batch.places[: len(batch.images)] for batch in batches])
    return ExampleWindows(
        volume=places[:, 0],
        position=places[:, 1:],
        images=np.concatenate([batch.images for batch in batches]),
        saliency=np.concatenate([batch.saliency for batch in batches]),
        maps=np.concatenate([batch.maps for batch in batches]),
    )
