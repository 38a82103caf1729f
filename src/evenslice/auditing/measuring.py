"""Windows are measured, in this process or on the workers of a cluster, until the word of an audit is settled.

In this process the next batch is read while the network computes; each worker of a cluster receives what it needs once.
"""

from __future__ import annotations

import math
import platform
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from evenslice._core import (
    ModelError,
    VolumeError,
    map_ahead,
    map_in_order,
    open_workers,
    option,
    progress_bar,
)
from evenslice.auditing.attribution import attribute
from evenslice.auditing.explainer import NotFiniteError
from evenslice.auditing.targets import check_batch
from evenslice.inference import BlackBox, ReadyNetwork, to_device
from evenslice.networks import answers_alone, logits
from evenslice.results import SAME, ExampleWindows, Measurements, ask
from evenslice.volumes import fingerprint, modified

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.explainer import Explainer
    from evenslice.auditing.sampling import WindowBatch, WindowSample
    from evenslice.inference import Compute
    from evenslice.results import Questions, Tolerances
    from evenslice.volumes import Volume

AHEAD = 1  # batches that are read while one is measured; those of an audit that stops are read for nothing
MOST = 8  # windows in one pass, beside as many mirrors
MOST_ON_GPU = 32  # windows in one pass: more would hardly be faster, and an audit stops between passes
CACHED_PIXELS = 2**17  # of windows and mirrors in float32
SETTLING = 200
"""Windows after which an audit gives up on a network that nothing in them has moved."""

_ALONE = threading.Lock()
"""The threads of a Dask worker share one network."""

_CHECKED: set[tuple[str, str]] = set()
"""The paths and fingerprints that a worker has found to be those of the command."""


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
class Found:
    """The windows that were read, what they say, why no more were read, and how many at most in one pass."""

    batches: list[MeasuredBatch]
    measurements: Measurements
    questions: Questions
    stopped: str
    batch: int


def check_first(sample: WindowSample, explainer: Explainer) -> None:
    """Check that the network answers a window in the same way whatever stands beside it, on two of the sample."""
    first: WindowBatch = next(sample.batches(lambda: 2))
    windows = torch.from_numpy(cast("NDArray[np.float32]", sample.read(first).windows))
    if len(windows) == 1:
        windows = torch.cat([windows, windows.flip(1)])
    network = explainer.network
    exact = network.in_precision(torch.float32) if isinstance(network, ReadyNetwork) else network

    def answer(batch: Tensor) -> dict[str, Tensor]:
        output = logits(exact(batch))
        check_batch(output, batch)
        return {"output": output.float()}

    with torch.no_grad(), network.reporting("two windows do not fit into it"):
        answers_alone(
            answer,
            windows.to(network.device),
            name=network.name,
            limits=(SAME, SAME),
            model=exact.module if isinstance(exact, ReadyNetwork) else None,
        )


def read_until_settled(
    sample: WindowSample,
    explainer: Explainer,
    tolerances: Tolerances,
    compute: Compute,
) -> Found:
    """Measure windows until the word is settled."""

    def size() -> int:
        return compute.batch or batch_size(sample, explainer)

    collected: list[MeasuredBatch] = []
    read, look, population = 0, sample.next_look(0), sum(sample.population)
    with (
        open_workers(compute.workers, compute.scheduler) as client,
        progress_bar(
            "audit", sample.limit, "windows at most", show=compute.progress, remaining=False
        ) as advance,
        closing(measure_batches(sample, explainer, size, client=client)) as measured,
    ):
        found, word = None, ""
        for batch in measured:
            collected.append(batch)
            read += len(batch.places)
            if read < look:
                advance(len(batch.places), word)
                continue
            look = sample.next_look(read)
            measurements = Measurements.joined([rows for item in collected for rows in item.rows])
            moved = _moved(measurements)
            if read >= min(SETTLING, sample.limit) and not moved:
                raise _unmoved(read, scores=explainer.explained.target == "sum")
            questions = ask(measurements, population, tolerances)
            word = questions.verdict
            advance(len(batch.places), word)
            stopped = questions.settled(sample.sampling.precision) if moved else ""
            ended = "all windows used" if read == population else "limit reached"
            found = Found(collected, measurements, questions, stopped or ended, size())
            if stopped or read == sample.limit:
                break
    return cast("Found", found)  # the last look is at the limit


def _moved(measured: Measurements) -> bool:
    """Return whether anything in the windows moves the output, or it differs between windows."""
    explained = measured.explained
    return bool(
        (np.ptp(explained, axis=0) > SAME * explained.max(axis=0)).any()
        or measured.saliency.any()
        or measured.reliance.any()
        or measured.outer.any()
        or np.nan_to_num(measured.mirror_disagreement).any()
        or (measured.mirror_error > SAME).any()
    )


def _unmoved(read: int, *, scores: bool) -> ModelError:
    advice = "if it detects nothing, lower its score threshold; else" if scores else "check the network, or"
    return ModelError(
        f"the network's output does not depend on its input: nothing in {read} windows moves it; {advice} explain "
        f"another output ({option('target')}, {option('outputs')})"
    )


def batch_size(sample: WindowSample, explainer: Explainer) -> int:
    """Return the fastest number of windows in one pass: on a CPU, what stays in its cache."""
    network, grid = explainer.network, sample.grids[0]
    if isinstance(network, BlackBox) or network.device.type not in ("cpu", "cuda"):
        return MOST
    if network.device.type == "cpu":
        return next((count for count in (MOST, 4, 2) if 2 * count * math.prod(grid.tile) <= CACHED_PIXELS), 1)

    def explain(count: int) -> None:
        shape = (count, grid.slices, *grid.tile)
        windows = torch.zeros(shape, dtype=torch.float32, device=network.device)
        explainer.rows(windows, None if sample.labels is None else windows[:, 0].long())

    kind = (explainer.method, network.dtype, grid.slices, *grid.tile)
    return network.batches.fitting(explain, network.device, most=MOST_ON_GPU, kind=kind)


def measure(sample: WindowSample, explainer: Explainer, batch: WindowBatch) -> MeasuredBatch:
    """Measure windows that were read.

    Raises:
        ModelError: the network returns NaN or infinity for a window, or has such a gradient.
    """
    network = explainer.network
    windows = to_device(cast("NDArray[np.float32]", batch.windows), network.device)
    labels = None if batch.labels is None else to_device(batch.labels, network.device)

    def compute(part: slice) -> tuple[dict[str, NDArray[Any]], Tensor]:
        try:
            rows, saliency = explainer.rows(windows[part], None if labels is None else labels[part])
        except NotFiniteError as error:
            raise _not_finite(error, sample, explainer, batch.places[part][error.row].tolist()) from error
        places = {"volume": batch.places[part, 0], "position": batch.places[part, 1:]}
        return places | rows, saliency[: max(batch.pictures - part.start, 0)].cpu()

    parts = network.batches.run(compute, len(windows), ("measure", network.dtype, *windows.shape[1:]))
    saliency = torch.cat([found for _, found in parts])
    total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    shown = windows[: batch.pictures]
    return MeasuredBatch(
        places=batch.places,
        rows=[rows for rows, _ in parts],
        images=(shown * 255).round().byte().cpu().numpy(),
        saliency=(saliency / total).numpy(),
        maps=_maps(explainer, shown, None if labels is None else labels[: batch.pictures]),
        device=str(network.device),
    )


def _maps(explainer: Explainer, windows: Tensor, labels: Tensor | None) -> NDArray[np.float32]:
    """Return what each pixel of windows adds to the answer, or takes from it."""
    if not len(windows):
        return np.zeros(windows.shape, np.float32)
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


def _not_finite(
    error: NotFiniteError, sample: WindowSample, explainer: Explainer, place: Sequence[int]
) -> ModelError:
    volume, *where = place
    advice = "it has to return finite numbers"
    if explainer.network.dtype.itemsize < 4:
        advice = f"compute in single precision with {option('dtype', 'float32')}"
    elif "returns" not in error.what:
        advice = f"use {option('method', 'occlusion')}"
    path = sample.grids[volume].volume.path
    return ModelError(
        f"the network {error.what} for the window at z, y, x = {tuple(where)} of {path}; {advice}"
    )


def measure_batches(
    sample: WindowSample, explainer: Explainer, size: Callable[[], int], *, client: Any
) -> Generator[MeasuredBatch]:
    """Measure the batches of a sample in order.

    Args:
        sample: the windows.
        explainer: what is asked of the network.
        size: returns how many windows a batch has at most.
        client: client of a Dask cluster, or None for this process.
    """
    if client is None:
        with closing(map_ahead(sample.read, sample.batches(size), threads=1, ahead=AHEAD)) as reading:
            yield from (measure(sample, explainer, batch) for batch in reading)
        return
    stamps = {volume.path: (volume, modified(volume)) for volume in sample.volumes}
    files = {path: (stamp, fingerprint(volume)) for path, (volume, stamp) in stamps.items() if stamp}
    work = partial(_measure_on_worker, files=files)  # which reads for itself
    with closing(map_in_order(work, sample.batches(size), client, common=(sample, explainer))) as measured:
        yield from measured


def _measure_on_worker(
    batch: WindowBatch, common: tuple[WindowSample, Explainer], files: Mapping[str, tuple[str, str]]
) -> MeasuredBatch:
    sample, explainer = common
    check_files(sample.volumes, files)
    read = sample.read(batch)
    with _ALONE:
        return measure(sample, explainer, read)


def check_files(volumes: Sequence[Volume], files: Mapping[str, tuple[str, str]]) -> None:
    """Raise VolumeError if a worker finds another file, or none, under the path of a volume; a copy is as good.

    Args:
        volumes: those that are read.
        files: of each path, when the command found it modified, and its fingerprint; not of addresses and arrays in memory.
    """
    for volume in volumes:
        stamp, content = files.get(volume.path, (None, ""))
        if stamp is None or (volume.path, content) in _CHECKED:
            continue
        try:
            same = modified(volume) == stamp or fingerprint(volume) == content
        except VolumeError as error:
            raise VolumeError(
                f"{volume.path}: is not there, or cannot be read, on the worker {platform.node()}; all workers must find it "
                "under this path"
            ) from error
        if not same:
            raise VolumeError(
                f"{volume.path}: has other content on a worker than here; all workers must find the same file under this path"
            )
        _CHECKED.add((volume.path, content))


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
