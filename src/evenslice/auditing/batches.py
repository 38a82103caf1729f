"""Batches of windows: read, explained together with their mirrors, and reduced to a row of numbers for each window.

    for batch in measure_batches(stream.batches(lambda: 8), measurer, precision, check_dtype=False, client=None):
        ...

This runs in the current process, or on the workers of a cluster, each of which receives the measurer once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import map_in_order
from evenslice.auditing.attribution import Mirrored
from evenslice.networks import logits
from evenslice.results import measure_outputs, measure_windows, pair_bias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.methods import Attributed
    from evenslice.inference import BlackBox, ReadyNetwork
    from evenslice.volumes import Volume, WindowGrid

    Network = ReadyNetwork | BlackBox

__all__ = ["MeasuredBatch", "Measurer", "Network", "WindowBatch", "WindowStream", "measure_batches"]

EXAMPLES = 8
EXACT, EXACT_EVERY = 4, 64
"""In the fast precision, the first 4 of every 64 windows also have their output computed in float32."""

SHARE_TOLERANCE = 0.002  # largest difference of the mean shares in the fast precision from those in float32


@dataclass(frozen=True)
class WindowStream:
    """The windows of several volumes in batches, taken from each volume in turn."""

    grids: list[WindowGrid]
    seed: int
    max_windows: int | None

    @property
    def available(self) -> int:
        """Number of windows in all volumes."""
        return sum(len(grid) for grid in self.grids)

    @property
    def limit(self) -> int:
        """Largest number of windows to measure."""
        return min(self.available, self.max_windows or self.available)

    def batches(self, size: Callable[[], int]) -> Iterator[WindowBatch]:
        """Yield the windows in batches; ``size`` is asked for the size of each."""
        places, seen = islice(self._places(), self.limit), 0
        while chunk := list(islice(places, size())):
            exact = -seen % EXACT_EVERY < len(chunk)
            yield WindowBatch(
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
class WindowBatch:
    """Windows to measure in one pass.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        exact: number of windows for which the effect of mirroring on the output is measured, in float32.
        pictures: number of windows to keep as pictures.
    """

    places: NDArray[np.int64]
    exact: int
    pictures: int


@dataclass(frozen=True)
class MeasuredBatch:
    """What an audit keeps of a batch: a row of numbers for each window, and the pictures of some."""

    places: NDArray[np.int64]
    rows: dict[str, NDArray[np.float64]]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]


@dataclass(frozen=True)
class Measurer:
    """Everything needed to measure a batch; ``classes`` says whether the output has classes."""

    network: Network
    grids: list[WindowGrid]
    labels: list[Volume] | None
    explain: Callable[..., Attributed]
    classes: bool

    def read(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None]:
        """Read windows (batch, N, y, x) and the label maps (batch, y, x) of their middle slices."""
        device, places = self.network.device, batch.places.tolist()
        windows = np.stack([self.grids[volume].read(*place) for volume, *place in places])
        read = torch.from_numpy(windows).to(device, memory_format=torch.channels_last)
        if self.labels is None:
            return read, None
        maps = [self.grids[volume].read_labels(self.labels[volume], *place) for volume, *place in places]
        return read, torch.from_numpy(np.stack(maps)).to(device)


def measure_batches(
    batches: Iterator[WindowBatch], measurer: Measurer, precision: float, *, check_dtype: bool, client: Any
) -> Iterator[MeasuredBatch]:
    """Measure batches in order; with ``check_dtype``, the first one decides the precision of the computation."""
    if check_dtype and measurer.network.dtype != torch.float32:
        first = partial(_measure_first, precision=precision)
        for found, dtype in map_in_order(first, islice(batches, 1), client, common=measurer):
            measurer.network.dtype = dtype
            yield found
    yield from map_in_order(_measure_batch, batches, client, common=measurer)


def _measure_first(
    batch: WindowBatch, measurer: Measurer, precision: float
) -> tuple[MeasuredBatch, torch.dtype]:
    """Measure the first batch, and choose the precision of the computation.

    That is float32 if the fast precision gives different shares or pair biases on the first windows. This happens on
    windows with large constant areas, where the rounding errors of a layer are equal at all pixels and do not average
    out.
    """
    network, (windows, labels), count = measurer.network, measurer.read(batch), batch.exact
    fast = network.dtype
    found = measurer.explain(network, windows, labels=labels)
    network.dtype = torch.float32
    exact = measurer.explain(network, windows[:count], labels=None if labels is None else labels[:count])
    given, right = _shares(found.attribution[:count]), _shares(exact.attribution)
    shares = np.abs((given - right).mean(0))
    biases = np.abs((pair_bias(given) - pair_bias(right)).mean(0))
    if shares.max() <= SHARE_TOLERANCE and biases.max(initial=0) <= precision / 2:
        network.dtype = fast
        return _measure_windows(batch, measurer, windows, labels, found, exact.output), fast
    return _measure_batch(batch, measurer), torch.float32


def _measure_batch(batch: WindowBatch, measurer: Measurer) -> MeasuredBatch:
    windows, labels = measurer.read(batch)
    return _measure_windows(
        batch, measurer, windows, labels, measurer.explain(measurer.network, windows, labels=labels)
    )


def _measure_windows(
    batch: WindowBatch,
    measurer: Measurer,
    windows: Tensor,
    labels: Tensor | None,
    attributed: Attributed,
    exact_output: Tensor | None = None,
) -> MeasuredBatch:
    """Measure windows from their attribution and, if known, the first of their outputs in float32."""
    network = measurer.network
    mirrored = measurer.explain(Mirrored(network), windows, labels=labels)
    rows = measure_windows(
        attributed.attribution,
        mirrored.attribution.flip(1),
        attributed.output,
        mirrored.output,
        classes=measurer.classes,
    )
    if network.dtype != torch.float32:
        rows |= _measure_exactly(batch, measurer, windows, exact_output)
    saliency = attributed.attribution[: batch.pictures]
    total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return MeasuredBatch(
        places=batch.places,
        rows=rows,
        images=(windows[: batch.pictures] * 255).round().byte().cpu().numpy(),
        saliency=(saliency / total).cpu().numpy(),
    )


@torch.no_grad()
def _measure_exactly(
    batch: WindowBatch, measurer: Measurer, windows: Tensor, output: Tensor | None
) -> dict[str, NDArray[np.float64]]:
    """Measure the effect of mirroring on the output of the first windows in float32; the others are NaN.

    For a fair network this effect is smaller than the rounding errors of the fast precision.
    """
    rows = {name: np.full(len(windows), np.nan) for name in ("mirror_error", "mirror_disagreement")}
    if not batch.exact:
        return rows
    network, windows, fast = measurer.network, windows[: batch.exact], measurer.network.dtype
    network.dtype = torch.float32
    try:
        exact = logits(network(windows)) if output is None else output
        mirrored = logits(network(windows.flip(1)))
    finally:
        network.dtype = fast
    for name, values in measure_outputs(exact, mirrored, classes=measurer.classes).items():
        rows[name][: batch.exact] = values
    return rows


def _shares(attribution: Tensor) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = attribution.sum(dim=(2, 3)).double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # no attribution at all is NaN, which equals nothing
        sums /= sums.sum(1, keepdims=True)
    return sums
