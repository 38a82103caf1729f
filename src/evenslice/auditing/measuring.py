"""Windows are read and measured, in this process or on the workers of a cluster.

    for batch in measure_batches(sample, lambda: 8, measurer, client=None):
        ...

In this process the next batch is read while the network computes; each worker of a cluster receives the measurer once.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ModelError, map_ahead, map_in_order, option
from evenslice.auditing.attribution import attribute
from evenslice.auditing.explaining import NotFiniteError
from evenslice.auditing.worker_files import KnownFiles, refuse_other_content
from evenslice.inference import to_device
from evenslice.results import ExampleWindows, Measurements

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.explaining import Explainer
    from evenslice.auditing.sampling import WindowBatch, WindowSample
    from evenslice.volumes import Volume, WindowGrid

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
    measure = partial(_measure_on_worker, files=KnownFiles.of(volumes))  # which reads for itself
    with closing(map_in_order(measure, sample.batches(size), client, common=measurer)) as measured:
        for found, copies in measured:
            refuse_other_content(volumes, copies, fingerprints)
            yield found


def _measure_on_worker(
    batch: WindowBatch, measurer: Measurer, files: KnownFiles
) -> tuple[MeasuredBatch, dict[str, str]]:
    """Measure a batch; return it, and the fingerprints of files that are copies."""
    copies, read = files.copies(measurer.volumes), measurer.read(batch)
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
