"""Batches of windows measured: read, explained with their mirrors, and reduced to a row of numbers a window.

    for found in measured(stream.batches(lambda: 8), job, precision, check_dtype=False, client=None):
        ...

In this process or on the workers of a cluster, where each is sent the job once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import in_order
from evenslice.auditing.attribution import Mirrored
from evenslice.networks import logits
from evenslice.results import measure, measure_outputs, pair_bias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.attribution import Attributed
    from evenslice.inference import BlackBox, ReadyNetwork
    from evenslice.volumes import Volume, WindowGrid

    Network = ReadyNetwork | BlackBox

__all__ = ["Batch", "Job", "Measured", "Network", "WindowStream", "measured"]

EXAMPLES = 8
EXACT, EXACT_EVERY = 4, 64
"""Of so many windows in the fast precision, so many have their output in float32 as well."""

SHARE_TOLERANCE = 0.002  # between the mean shares of the first windows in the fast precision and in float32


@dataclass(frozen=True)
class WindowStream:
    """The windows of several volumes, taken from each in turn, in batches."""

    grids: list[WindowGrid]
    seed: int
    max_windows: int | None

    @property
    def available(self) -> int:
        """The number of windows that there are."""
        return sum(len(grid) for grid in self.grids)

    @property
    def limit(self) -> int:
        """The number of windows to measure at most."""
        return min(self.available, self.max_windows or self.available)

    def batches(self, size: Callable[[], int]) -> Iterator[Batch]:
        """Yield the windows in batches of a size that may change on the way."""
        places, seen = islice(self._places(), self.limit), 0
        while chunk := list(islice(places, size())):
            exact = -seen % EXACT_EVERY < len(chunk)
            yield Batch(
                np.array(chunk, dtype=np.int64),
                exact=min(EXACT, len(chunk)) if exact else 0,
                pictures=min(max(EXAMPLES - seen, 0), len(chunk)),
            )
            seen += len(chunk)

    def _places(self) -> Iterator[tuple[int, int, int, int]]:
        visits = {index: grid.visits(seed=self.seed + index) for index, grid in enumerate(self.grids)}
        while visits:
            for index, visit in list(visits.items()):
                place = next(visit, None)
                if place is None:
                    del visits[index]
                else:
                    yield (index, *place)


@dataclass(frozen=True)
class Batch:
    """Windows to be measured at once.

    Attributes:
        places: (batch, 4) volume, z, y, x of each.
        exact: of how many of the windows what a mirror does to the output is wanted, which takes outputs in float32.
        pictures: how many of the windows are wanted as pictures.
    """

    places: NDArray[np.int64]
    exact: int
    pictures: int


@dataclass(frozen=True)
class Measured:
    """What an audit keeps of a batch: a row of numbers for each window, and the pictures."""

    places: NDArray[np.int64]
    rows: dict[str, NDArray[np.float64]]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """All that it takes to measure a batch; on a cluster, each worker gets it once."""

    network: Network
    grids: list[WindowGrid]
    labels: list[Volume] | None
    explain: Callable[..., Attributed]
    classes: bool

    def read(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Read windows (batch, N, y, x) and the label maps (batch, y, x) of their middle slices."""
        device, places = self.network.device, batch.places.tolist()
        windows = np.stack([self.grids[volume].read(*place) for volume, *place in places])
        read = torch.from_numpy(windows).to(device, memory_format=torch.channels_last)
        if self.labels is None:
            return read, None
        maps = [self.grids[volume].read_labels(self.labels[volume], *place) for volume, *place in places]
        return read, torch.from_numpy(np.stack(maps)).to(device)


def measured(
    batches: Iterator[Batch], job: Job, precision: float, *, check_dtype: bool, client: Any
) -> Iterator[Measured]:
    """Measure batches, in order; the first one settles the precision."""
    if check_dtype and job.network.dtype != torch.float32:
        first = partial(_measure_first, precision=precision)
        for found, dtype in in_order(first, islice(batches, 1), client, common=job):
            job.network.dtype = dtype
            yield found
    yield from in_order(_measure_batch, batches, client, common=job)


def _measure_first(batch: Batch, job: Job, precision: float) -> tuple[Measured, torch.dtype]:
    """Measure the first batch, in float32 where the fast precision gives other shares or pair biases on its first windows.

    It does on windows with large constant areas: there every rounding error of a layer is the same at all pixels, and
    does not average out.

    Returns:
        What was measured, and the precision that is exact enough.
    """
    network, (windows, labels), count = job.network, job.read(batch), batch.exact
    fast = network.dtype
    found = job.explain(network, windows, labels=labels)
    network.dtype = torch.float32
    exact = job.explain(network, windows[:count], labels=None if labels is None else labels[:count])
    given, right = _shares(found.attribution[:count]), _shares(exact.attribution)
    shares = np.abs((given - right).mean(0))
    biases = np.abs((pair_bias(given) - pair_bias(right)).mean(0))
    if shares.max() <= SHARE_TOLERANCE and biases.max(initial=0) <= precision / 2:
        network.dtype = fast
        return _measure_windows(batch, job, windows, labels, found, exact.output), fast
    return _measure_batch(batch, job), torch.float32


def _measure_batch(batch: Batch, job: Job) -> Measured:
    windows, labels = job.read(batch)
    return _measure_windows(batch, job, windows, labels, job.explain(job.network, windows, labels=labels))


def _measure_windows(
    batch: Batch,
    job: Job,
    windows: Tensor,
    labels: Tensor | None,
    found: Attributed,
    exact_output: Tensor | None = None,
) -> Measured:
    """Measure windows of which the attribution, and perhaps the first outputs in float32, are at hand."""
    network = job.network
    mirrored = job.explain(Mirrored(network), windows, labels=labels)
    rows = measure(
        found.attribution,
        mirrored.attribution.flip(1),
        found.output,
        mirrored.output,
        classes=job.classes,
    )
    if network.dtype != torch.float32:
        rows |= _measure_exactly(batch, job, windows, exact_output)
    saliency = found.attribution[: batch.pictures]
    total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return Measured(
        places=batch.places,
        rows=rows,
        images=(windows[: batch.pictures] * 255).round().byte().cpu().numpy(),
        saliency=(saliency / total).cpu().numpy(),
    )


@torch.no_grad()
def _measure_exactly(
    batch: Batch, job: Job, windows: Tensor, output: Tensor | None
) -> dict[str, NDArray[np.float64]]:
    """Measure in float32 what a mirror does to the output, of the first windows; that of the others stays open.

    What it does to the output of a fair network is less than the rounding of the fast precision.
    """
    rows = {name: np.full(len(windows), np.nan) for name in ("mirror_error", "mirror_disagreement")}
    if not batch.exact:
        return rows
    network, windows, fast = job.network, windows[: batch.exact], job.network.dtype
    network.dtype = torch.float32
    try:
        exact = logits(network(windows)) if output is None else output
        mirrored = logits(network(windows.flip(1)))
    finally:
        network.dtype = fast
    for name, values in measure_outputs(exact, mirrored, classes=job.classes).items():
        rows[name][: batch.exact] = values
    return rows


def _shares(attribution: Tensor) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = attribution.sum(dim=(2, 3)).double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # no attribution at all: NaN, which agrees with nothing
        sums /= sums.sum(1, keepdims=True)
    return sums
