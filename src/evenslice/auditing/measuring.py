"""Windows are read, explained together with their mirrors, and reduced to a row of numbers each.

    for batch in measure_batches(stream, lambda: 8, measurer, precision, check_dtype=False, client=None):
        ...

This runs in the current process, where the next batch is read while the network computes, or on the workers of a
cluster, each of which receives the measurer once.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import map_ahead, map_in_order
from evenslice.auditing.finite import check_finite
from evenslice.auditing.rounding import USE_FIELDS, remove_rounding
from evenslice.auditing.subset import cut, measure_subset
from evenslice.auditing.worker_files import KnownFiles, refuse_other_content
from evenslice.results import OUTPUT_FIELDS, pair_bias

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.batches import WindowBatch, WindowStream
    from evenslice.auditing.measurer import Explained, Measurer, ReadBatch
    from evenslice.auditing.methods import Attributed

__all__ = ["MeasuredBatch", "measure_batches"]

SHARE_TOLERANCE = 0.002  # largest difference of the mean shares in the fast precision from those in float32
AHEAD = 1  # batches that are read while one is measured; those of an audit that stops are read for nothing
CHECKED = 4  # windows on which the fast precision is compared with float32


_ALONE = threading.Lock()
"""The threads of a Dask worker share one network, whose precision is changed while it measures."""


@dataclass(frozen=True)
class MeasuredBatch:
    """What an audit keeps of a batch: a row of numbers for each window and more for some, and the pictures of some.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        rows: fields of ``Measurements``.
        subset: rows of the windows in the subset.
        subset_rows: fields of ``SubsetMeasurements`` for those, except their numbers.
        images: (pictures, N, y, x) the first windows.
        saliency: (pictures, N, y, x) their absolute attribution divided by its sum.
        device: where they were measured.
    """

    places: NDArray[np.int64]
    rows: dict[str, NDArray[np.float64]]
    subset: NDArray[np.int64]
    subset_rows: dict[str, NDArray[np.float64]]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]
    device: str


def measure_batches(
    stream: WindowStream,
    size: Callable[[], int],
    measurer: Measurer,
    precision: float,
    *,
    check_dtype: bool,
    client: Any,
) -> Generator[MeasuredBatch]:
    """Measure the batches of a stream in order; with ``check_dtype``, the first one decides the precision.

    Args:
        stream: the windows.
        size: returns how many of them a batch has at most, in the precision that the measurer has then.
        measurer: of the audit; it is left in the precision that was decided for.
        precision: half-width within which the pair biases are to be known.
        check_dtype: whether a fast precision has to prove itself.
        client: client of a Dask cluster, or None for this process.
    """
    check = check_dtype and measurer.network.dtype != torch.float32
    if client is not None:  # whose workers read for themselves
        yield from _measure_on_cluster(stream, size, measurer, precision, client, check=check)
        return
    batches = stream.batches(size)
    for batch in islice(batches, int(check)):
        found, measurer.network.dtype = _measure_first(batch, measurer, precision)
        yield found
    with closing(map_ahead(measurer.read, batches, threads=1, ahead=AHEAD)) as reading:
        for read in reading:
            yield _measure_read(read, measurer)


def _measure_on_cluster(
    stream: WindowStream,
    size: Callable[[], int],
    measurer: Measurer,
    precision: float,
    client: Any,
    *,
    check: bool,
) -> Generator[MeasuredBatch]:
    """Measure batches on workers, which go on in the fast precision while one of them checks it on the first batch.

    If it has not proved itself, what they have measured meanwhile is left out, and they begin again behind that batch.
    """
    fast = measurer.network.dtype
    tasks = zip(stream.batches(size), chain([check], repeat(False)), strict=False)
    volumes, fingerprints = measurer.volumes, dict[str, str]()
    measure = partial(_measure_task, precision=precision, files=KnownFiles.of(volumes))
    with closing(map_in_order(measure, tasks, client, common=measurer)) as measured:
        for found, dtype, copies in measured:
            refuse_other_content(volumes, copies, fingerprints)
            measurer.network.dtype = dtype
            yield found
            if dtype != fast:
                break
        else:
            return
    # The first batch comes again, to be left out; the others are as large as is asked for now.
    sizes = chain([len(found.places)], iter(size, None))
    rest = islice(stream.batches(lambda: next(sizes)), 1, None)
    measure = partial(_measure_task, precision=precision, files=KnownFiles.of(volumes))
    with closing(map_in_order(measure, zip(rest, repeat(False)), client, common=measurer)) as measured:
        for found, _, copies in measured:
            refuse_other_content(volumes, copies, fingerprints)
            yield found


def _measure_task(
    task: tuple[WindowBatch, bool], measurer: Measurer, precision: float, files: KnownFiles
) -> tuple[MeasuredBatch, torch.dtype, dict[str, str]]:
    """Measure a batch, the first one with a check; return it, the precision for what follows, and copies of files."""
    (batch, first), copies = task, files.copies(measurer.volumes)
    if first:
        return *_measure_first(batch, measurer, precision), copies
    return _measure_batch(batch, measurer), measurer.network.dtype, copies


def _measure_first(
    batch: WindowBatch, measurer: Measurer, precision: float
) -> tuple[MeasuredBatch, torch.dtype]:
    """Measure the first batch, and choose the precision of the computation.

    That is float32 if the fast precision gives different shares or pair biases on the first windows. This happens on
    windows with large constant areas, where the rounding errors of a layer are equal at all pixels and do not average
    out.
    """
    read = measurer.read(batch)
    with _ALONE:
        return _choose_dtype(read, measurer, precision)


def _choose_dtype(read: ReadBatch, measurer: Measurer, precision: float) -> tuple[MeasuredBatch, torch.dtype]:
    windows, labels = measurer.place(read)
    fast = measurer.network.dtype
    found = measurer.explain(windows, labels)
    some = slice(CHECKED)
    exact = measurer.in_precision(torch.float32)
    checked = exact.explain(windows[some], None if labels is None else labels[some])
    given, right = _shares(found.at(some).attribution), _shares(checked.attribution)
    shares = np.abs((given - right).mean(0))
    biases = np.abs((pair_bias(given) - pair_bias(right)).mean(0))
    if shares.max() <= SHARE_TOLERANCE and biases.max(initial=0) <= precision / 2:
        return _measure_windows(read.batch, measurer, windows, labels, found), fast
    return _measure_read(read, exact), torch.float32


def _measure_batch(batch: WindowBatch, measurer: Measurer) -> MeasuredBatch:
    read = measurer.read(batch)
    with _ALONE:
        return _measure_read(read, measurer)


def _measure_read(read: ReadBatch, measurer: Measurer) -> MeasuredBatch:
    windows, labels = measurer.place(read)
    return _measure_windows(read.batch, measurer, windows, labels, measurer.explain(windows, labels))


def _measure_windows(
    batch: WindowBatch,
    measurer: Measurer,
    windows: Tensor,
    labels: Tensor | None,
    given: Attributed,
) -> MeasuredBatch:
    """Measure windows from what the first method found for them."""
    found = measurer.with_mirrors(windows, labels, given)
    check_finite(measurer, found, batch.places, measurer.methods.first)
    rows = found.rows(classes=measurer.classes)
    _leave_out_own_mirrors(rows, windows)
    subset_rows: dict[str, NDArray[np.float64]] = {}
    methods, fast = measurer.methods, measurer.network.dtype != torch.float32
    # What a fair network changes when a window is reversed is smaller than the rounding errors of the fast precision.
    names = (
        (*OUTPUT_FIELDS, *USE_FIELDS, "own_mirror")
        if fast
        else ()
        if methods.first == methods.use
        else USE_FIELDS
    )
    for name in names:
        rows[name] = np.full_like(rows[name], np.nan)
    if not names:
        remove_rounding(measurer, windows, labels, rows)
    if len(batch.subset):
        whole = None if fast or measurer.crop else found.at(batch.subset)
        exact = measurer.in_precision(torch.float32)
        subset_rows, used = _measure_subset(batch, exact, windows, labels, whole)
        for name in names:  # an output may have another number of features on a part of the tile
            rows[name] = np.full((len(rows[name]), *used[name].shape[1:]), np.nan)
            rows[name][batch.subset] = used[name]
    saliency = given.attribution[: batch.pictures].abs()
    total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return MeasuredBatch(
        places=batch.places,
        rows=rows,
        subset=batch.subset,
        subset_rows=subset_rows,
        images=(windows[: batch.pictures] * 255).round().byte().cpu().numpy(),
        saliency=(saliency / total).cpu().numpy(),
        device=str(measurer.network.device),
    )


def _measure_subset(
    batch: WindowBatch, measurer: Measurer, windows: Tensor, labels: Tensor | None, found: Explained | None
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Return the rows of the subset, and those that tell how its slices are used; ``found`` if that is known."""
    methods, counts = measurer.methods, batch.counts
    cut_windows = cut(windows[batch.subset], measurer.crop, counts)
    maps = None if labels is None else cut(labels[batch.subset], measurer.crop, counts)
    places, explainer = batch.places[batch.subset], measurer.explainer(cut_windows, maps)

    def explain(only: int | Tensor | None) -> Explained:
        return check_finite(measurer, explainer(only), places, methods.first)

    def explain_by(method: str, known: Explained | None = None) -> Explained:
        by_it = measurer.explain_both(cut_windows, maps, method=method, found=known)
        return check_finite(measurer, by_it, places, method)

    first = explain(None) if found is None else found
    use = first if methods.first == methods.use else explain_by(methods.use)
    second = None
    if methods.second is not None:
        second = use if methods.second == methods.use else explain_by(methods.second, first)
    rows = measure_subset(measurer, maps, first, second, explain, turns=batch.turns)
    used = use.rows(classes=measurer.classes)
    _leave_out_own_mirrors(used, cut_windows)
    remove_rounding(measurer, cut_windows, maps, used)
    return rows, used


def _leave_out_own_mirrors(rows: dict[str, NDArray[np.float64]], windows: Tensor) -> None:
    """Add which windows (m, N, y, x) are their own mirrors to their rows, and leave their mirror mismatch out."""
    own = (windows == windows.flip(1)).flatten(1).all(dim=1).cpu().numpy()
    rows["own_mirror"] = own.astype(np.float64)
    for name in USE_FIELDS:
        rows[name][own] = np.nan


def _shares(attribution: Tensor) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = attribution.abs().sum(dim=(2, 3)).cpu().double().numpy()
    with np.errstate(invalid="ignore"):  # no attribution at all is NaN, which equals nothing
        sums /= sums.sum(1, keepdims=True)
    return sums
