"""Audits: windows of volumes are drawn, explained together with their mirrors, and judged until the word is settled.

Memory grows with the number of windows that are read, not with the size of the volumes. In this process the next batch is
read while the network computes; each worker of a cluster receives what it needs once.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import (
    ConfigError,
    ModelError,
    VolumeError,
    local_path,
    map_ahead,
    map_tasks,
    open_workers,
    option,
    package_versions,
    progress_bar,
)
from evenslice.auditing.attribution import (
    Score,
    attribute,
    check_batch,
    choose_method,
    count_classes,
    parse_target,
    understand,
)
from evenslice.auditing.explainer import Explainer, NotFiniteError
from evenslice.auditing.options import Sampling
from evenslice.auditing.sampling import WindowBatch, WindowSample, corner_of, fit_tile, inner_margin
from evenslice.inference import (
    BlackBox,
    Compute,
    Predictor,
    ReadyNetwork,
    Segmenter,
    as_segmenter,
    count_ways,
    make_ready,
    measure_stress,
    to_device,
)
from evenslice.networks import StemKernels, answers_alone, function_name, logits, normalization
from evenslice.neutralizing import record_of, uncompiled_record
from evenslice.report import html_of, write_report
from evenslice.results import AuditResult, Measurements, Tolerances, ask, summarize
from evenslice.volumes import (
    LabelValues,
    Reading,
    WindowGrid,
    check_tile,
    fingerprint,
    modified,
    open_labels,
    open_volume,
    open_volumes,
    read_in_runs,
    refuse_repeated,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.attribution import Function, Target
    from evenslice.neutralizing import Record
    from evenslice.volumes import Scaling, Volume, VolumeLike


AHEAD = 1  # batches that are read while one is measured; those of an audit that stops are read for nothing
MOST = 8  # windows in one pass, beside as many mirrors
MOST_ON_GPU = 32  # windows in one pass: more would hardly be faster, and an audit stops between passes
CACHED_PIXELS = 2**17  # of windows and mirrors in float32
EXAMPLES = 2  # whose maps take as long as a dozen windows
MOST_OF_EXAMPLES = 2**27  # bytes that they may take: results of a few audits are read back together
SETTLING = 200
"""Windows after which an audit gives up on a network that nothing in them has moved."""

_ALONE = threading.Lock()
"""The threads of a Dask worker share one network."""

_CHECKED: set[tuple[str, str | None]] = set()
"""The paths and fingerprints that a worker has found to be those of the command."""

PACKAGES = (
    *("evenslice", "torch", "numpy", "scipy", "captum", "timm", "segmentation-models-pytorch", "torchvision"),
    "onnxruntime",
)
STRESSED_SLICES = 16
STRESSED_SIDE = 1024
"""Pixels of a slice along y and x that are predicted: the middle of a larger one, so that the time does not grow with it."""


CHECKED_BYTES = 2**25  # at once
MOST_CHECKED = 2**28
"""Voxels of labels that are read before an audit, which takes seconds."""


class Audit(AuditResult):
    """The result of an audit.

    The main statistics are attributes (``audit.verdict``, ``audit.reliance[0].low``); ``save`` writes the result to files,
    ``load`` reads it and ``to_html`` writes the report. See ``evenslice.results.AuditResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> Audit.load(path).verdict == found.verdict
        True
    """

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report of this audit as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_report([self], path)

    _repr_html_ = html_of  # in a notebook


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def audit(
    model: nn.Module | Function | Segmenter,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    slices: int | None = None,
    method: str | None = None,
    baseline: str | None = None,
    target: Target = "auto",
    outputs: Function | None = None,
    reading: Reading | Sequence[Reading] | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008  # immutable
    tolerances: Tolerances = Tolerances(),  # noqa: B008  # immutable
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> Audit:
    """Measure how unequally a network treats the slices of its windows, and give a verdict for these volumes.

    Windows are drawn at random from all volumes, and each answers four questions: would a saliency map favour a side,
    does the network rely on one, does the order of slices change its answers, and are opposite slices used in the
    same way? The audit ends once the verdict is settled. The network is not changed; a frozen copy runs, in
    evaluation mode.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled by its record, else by the mean and std
            that its library states for pretrained weights, else not at all; with another scaling than in training,
            the audit is wrong. Or any function, such as one from ``load_onnx``; see ``evenslice.inference.BlackBox``
            for its input. Or either in a ``Segmenter``.
        volume: a volume, an array (z, y, x), a path, or several of these; several volumes are treated as independent
            samples, and no file may be given twice.
        labels: class maps of the volumes' shapes. With them, the audit also measures the cost of disturbed slices,
            unless windows have one slice: the ``stress`` of the result. The target "labels" needs them.
        slices: N, odd; by default from the network's record, the function or the segmenter, else 3.
        method: the attribution method for the question of saliency, one of ``evenslice.auditing.METHODS``; by
            default "gradient". Functions have no gradient, so the question is skipped. "occlusion" needs none, and
            measures the use of slices by replacing them.
        baseline: "middle" (a window whose slices all are the middle one) or "gray" (the window's mean), the reference
            of "integrated_gradients" (default "middle") and "occlusion" (default "gray"); without a method, of the
            examples' maps.
        target: the output to explain: the log-odds of the class that is "predicted", of a class number or of the
            "labels", or the "sum" of all outputs. "auto" is "predicted" if the output has classes (two or four
            dimensions, or whole numbers that are class numbers), else "sum"; ``run.target`` of the result says which.
        outputs: maps the network's output to one tensor, batch first (default: ``evenslice.networks.logits``).
        reading: how to read volumes and labels, by default the segmenter's; one for each volume where they differ in
            intensity or fill.
        sampling: which windows to read, and when to stop; the default tile is the segmenter's crop.
        tolerances: how far from 0 still counts as fair.
        compute: where and how the network runs; with bfloat16 or float16, all figures are computed in it.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network rejects the windows; its output does not suit the target, or does not depend on the
            windows (the first 200, or all, if fewer); its output or gradient is NaN or infinite for a window; or its
            output differs between two runs of the same window, alone or beside another.
        ConfigError: an option is out of range or has no effect, the function cannot be sent to workers, or the scheduler
            does not answer.
        EvensliceError: worker processes do not start, or one was killed.
        MissingExtraError: a scheduler is given, and Dask is not installed.

    Example: a network that reads only the slice before the middle.
        >>> import numpy as np
        >>> import torch
        >>> network = nn.Conv2d(3, 1, 1, bias=False)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        >>> volume = np.random.default_rng(0).random((64, 32, 32))
        >>> found = audit(network, volume)
        >>> found.verdict, [share.estimate for share in found.shares], found.reliance[0].estimate
        ('biased', [1.0, 0.0, 0.0], -1.0)
    """
    started = time.monotonic()
    compute.refuse("engine")
    target = parse_target(str(target))
    segmenter = as_segmenter(model, slices, labelled=labels is not None)
    model, slices, reading = segmenter.network, segmenter.slices, reading or segmenter.reading
    volumes, readings = open_volumes(volume, reading)
    read = readings[0]
    if labels is None:
        read.labels.refuse()
    elif read.ignore_label is not None and target == "labels":
        raise ConfigError(
            f"{option('ignore_label', read.ignore_label)}: the target 'labels' explains the class of every pixel; omit one of "
            "the two"
        )
    record = None
    if isinstance(model, nn.Module):
        model, record = uncompiled_record(model)
    refuse_repeated(volumes)
    stored = None if labels is None else open_labels(labels, volumes)
    asked = segmenter.crop if sampling.tile is None else check_tile(sampling.tile)
    network = make_ready(model, slices, compute, outputs=outputs)
    smallest = (min(item.shape[1] for item in volumes), min(item.shape[2] for item in volumes))
    tile = asked or network.accepted(fit_tile(smallest, multiple=network.multiple))
    margin = inner_margin(smallest, tile)
    grids = [
        WindowGrid(
            item,
            # All windows of a blank volume would be the same.
            way.fit_scaling(item, seed=sampling.seed, blank=len(volumes) > 1),
            slices,
            tile,
            read.step,
            overlap=(2 * margin[0], 2 * margin[1]),
        )
        for item, way in zip(volumes, readings, strict=True)
    ]
    asked_for = [] if sampling.explain is None else [_place(grids[0], sampling.explain)]
    returned = network.prepare(slices, tile)
    overlapping = None if target == "sum" else read.overlapping
    understood = understand(network, returned, grids[0], target, overlapping)
    opened = [read.labels.class_volume(item, count_classes(returned)) for item in stored or ()]
    stressed = stressed_volumes(returned, grids, opened) if sampling.stress and opened and slices > 1 else []
    for part in opened:  # so that a value of no class is found before anything is computed
        if part.size <= MOST_CHECKED and not isinstance(part.location, str):  # which is an address
            held = read_in_runs(part, len(part), CHECKED_BYTES)
            for z in range(len(held)):
                held[z]
    maps = choose_method(model, method, baseline, gradient=understood.gradient)
    explainer = Explainer(
        network,
        understood,
        maps,
        method or ("gradient" if understood.gradient else ""),
        maps[1] if method else None,
        sampling.seed,
    )
    sample = WindowSample(grids, sampling, opened if opened and understood.target == "labels" else None)
    check_first(sample, explainer)
    found = read_until_settled(sample, explainer, tolerances, compute)
    examples, lost = picture_windows(sample, explainer, asked_for), None
    if stressed:
        lost = measure_stress(
            Predictor(network, slices, read.step, asked, compute.batch),
            stressed,
            most_slices=min(STRESSED_SLICES, max(1, sampling.max_windows // count_ways(slices))),
            seed=sampling.seed,
            progress=compute.progress,
        ).summary()
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(found.measurements, sample.population, tolerances),
        windows=len(found.measurements),
        measurements=found.measurements,
        examples=examples,
        kernels=_kernels(model, record),
        stress=lost,
        run=describe_run(
            sample,
            explainer,
            found,
            model=model,
            record=record,
            labels=stored,
            values=read.labels,
            seconds=time.monotonic() - started,
        ),
    )


def load_audits(folder: str | os.PathLike[str]) -> list[Audit]:
    """Read all audits in a folder and its immediate subfolders, oldest first.

    Audits of the same name get the name of their folder as a prefix.

    Raises:
        ConfigError: there is no audit, or one that cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> [audit.name for audit in load_audits(path.rpartition("/")[0])]
        ['audit']
    """
    folder = local_path(folder, ConfigError)
    paths = sorted([*folder.glob("audit*.json"), *folder.glob("*/audit*.json")])
    if not paths:
        raise ConfigError(f"{folder}: holds no audit; name a folder that `evenslice audit --out` wrote")
    audits = [(path, Audit.load(path)) for path in paths]
    count = Counter(audit.name for _, audit in audits)
    named = [
        replace(audit, name=f"{path.parent.resolve().name}: {audit.name}") if count[audit.name] > 1 else audit
        for path, audit in audits
    ]
    return sorted(named, key=lambda audit: audit.run.created)


def _place(grid: WindowGrid, explain: int | Sequence[int]) -> tuple[int, ...]:
    """Return volume, z, y, x of the window around a voxel, or in the middle of a slice."""
    given = tuple(np.atleast_1d(explain).tolist())
    if len(given) not in (1, 3) or given[0] not in grid.centres:
        first, last = grid.centres[0], grid.centres[-1]
        raise ConfigError(
            f"{option('explain', explain)}: give a slice z whose window is complete, {first} to {last}, or a voxel z, y, x "
            "in one"
        )
    return (0, given[0], *corner_of("explain", given[1:] or None, grid.tile, grid.volume.shape[1:]))


def _kernels(model: nn.Module | Function, record: Record | None) -> tuple[StemKernels, ...]:
    """Return the stems' kernels as ``neutralize`` recorded them, or as they stand in a network read from a file."""
    if record is None or not isinstance(model, nn.Module):
        return ()
    if record.kernels:
        return record.kernels
    found = []
    for name in record.stems:
        weight = cast("Tensor", model.get_submodule(name).weight).detach().float().cpu().numpy()
        kernels = weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
        found.append(StemKernels(name, kernels, kernels))
    return tuple(found)


# What a lost slice costs: the short form of the stress test, on a few slices.


def stressed_volumes(
    returned: Any, grids: Sequence[WindowGrid], labels: Sequence[Volume]
) -> list[tuple[Volume, Scaling, Volume]]:
    """Return what the stress test predicts: of each volume the middle of its slices, with its labels.

    Args:
        returned: what the network returned for a window.
        grids: the volumes, with their scaling.
        labels: the class of each voxel of each volume, 0, 1, 2 ..., or ``LabelValues.IGNORED``.

    Raises:
        ModelError: the network returns no map of logits.
    """
    output = logits(returned)
    if output.ndim != 4 or not output.is_floating_point():
        raise ModelError(
            f"{option('labels')}: they are for measuring what a lost slice costs, for which the network must return logits "
            f"(batch, classes, y, x); it returns {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}: leave "
            "them out"
        )
    classes = max(output.shape[1], 2)
    known = LabelValues(ignore_label=LabelValues.IGNORED)
    return [
        (take_middle(grid.volume), grid.scaling, known.class_volume(take_middle(part), classes))
        for grid, part in zip(grids, labels, strict=True)
    ]


def take_middle(volume: Volume) -> Volume:
    """Return the middle of each slice, up to ``STRESSED_SIDE`` pixels along y and x, as a volume, without reading it.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> take_middle(open_volume(np.zeros((2, 30, 3000), np.uint8))).path
        '<array>[0:2,0:30,988:2012]'
    """
    region = []
    for axis, length in zip("zyx", open_volume(volume, plane="z").shape, strict=True):
        side = length if axis == volume.plane else min(length, STRESSED_SIDE)
        region.append(slice((length - side) // 2, (length - side) // 2 + side))
    return open_volume(volume, region=region)


# Windows are measured, in this process or on the workers of a cluster, until the word is settled.


@dataclass(frozen=True)
class Found:
    """What windows say, why no more were read, how many at most in one pass, and where they were measured."""

    measurements: Measurements
    stopped: str
    batch: int
    devices: set[str]


def check_first(sample: WindowSample, explainer: Explainer) -> None:
    """Check that the network answers a window in the same way whatever stands beside it, on two of the sample."""
    windows = torch.from_numpy(sample.read(sample.positions(0, min(2, sample.limit))).windows)
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
            limits=(Measurements.SAME, Measurements.SAME),
            model=exact.module if isinstance(exact, ReadyNetwork) else None,
        )


def read_until_settled(
    sample: WindowSample, explainer: Explainer, tolerances: Tolerances, compute: Compute
) -> Found:
    """Measure windows until the word is settled."""
    size = compute.batch or batch_size(explainer.network, sample.grids[0].tile)
    collected, devices = list[Measurements](), set[str]()
    read, look, population = 0, sample.next_look(0), sum(sample.population)
    with (
        open_workers(compute.workers, compute.scheduler) as client,
        progress_bar(
            "audit", sample.limit, "windows at most", show=compute.progress, remaining=False
        ) as advance,
        closing(measure_batches(sample, explainer, size, client=client)) as measured,
    ):
        found, word = None, ""
        for batch, device in measured:
            collected.append(batch)
            devices.add(device)
            read += len(batch)
            if read < look:
                advance(len(batch), word)
                continue
            look = sample.next_look(read)
            measurements = Measurements.joined([*map(vars, collected)])
            moved = measurements.moved
            if read >= min(SETTLING, sample.limit) and not moved:
                raise ModelError(
                    f"the network's output does not depend on its input: nothing in {read} windows moves it; check the network, "
                    f"lower the score threshold of a detector, or explain another output ({option('target')}, "
                    f"{option('outputs')})"
                )
            questions = ask(measurements, population, tolerances)
            word = str(questions)
            advance(len(batch), word)
            stopped = questions.settled(sample.sampling.precision) if moved else ""
            ended = "all windows used" if read == population else "limit reached"
            found = Found(measurements, stopped or ended, size, devices)
            if stopped or read == sample.limit:
                break
    return cast("Found", found)  # the last look is at the limit


def batch_size(network: ReadyNetwork | BlackBox, tile: tuple[int, int]) -> int:
    """Return the fastest number of windows in one pass: on a CPU, what stays in its cache."""
    if isinstance(network, BlackBox) or network.device.type != "cpu":
        return MOST_ON_GPU if network.device.type == "cuda" else MOST
    return next((count for count in (MOST, 4, 2) if 2 * count * math.prod(tile) <= CACHED_PIXELS), 1)


def measure(sample: WindowSample, explainer: Explainer, batch: WindowBatch) -> tuple[Measurements, str]:
    """Measure windows that were read, and say on which device.

    Raises:
        ModelError: the network returns NaN or infinity for a window, or has such a gradient.
    """
    network = explainer.network
    windows, labels = _on_device(batch, network.device)

    def compute(part: slice) -> dict[str, NDArray[Any]]:
        try:
            rows = explainer.rows(windows[part], None if labels is None else labels[part])
        except NotFiniteError as error:
            volume, *place = batch.places[part][error.row].tolist()
            raise ModelError(
                f"the network {error} for the window at z, y, x = {tuple(place)} of {sample.grids[volume].volume.path}; "
                f"correct it, compute with {option('dtype', 'float32')}, or use {option('method', 'occlusion')}"
            ) from error
        return {"volume": batch.places[part, 0], "position": batch.places[part, 1:], **rows}

    parts = network.batches.run(compute, len(windows), ("measure", network.dtype, *windows.shape[1:]))
    return Measurements.joined(parts), str(network.device)


def _on_device(batch: WindowBatch, device: torch.device) -> tuple[Tensor, Tensor | None]:
    return to_device(batch.windows, device), None if batch.labels is None else to_device(batch.labels, device)


def picture_windows(sample: WindowSample, explainer: Explainer, asked_for: Sequence[tuple[int, ...]]) -> Any:
    """Return the pictures of the windows that were asked for, volume, z, y, x, and of the first of the sample."""
    network, grid = explainer.network, sample.grids[0]
    # Of large windows, one: a byte and a float32 for each voxel.
    most = EXAMPLES if 5 * EXAMPLES * grid.slices * math.prod(grid.tile) < MOST_OF_EXAMPLES else 1
    first = sample.positions(0, min(most, sample.limit))
    batch = sample.read(np.concatenate([np.reshape(asked_for, (-1, 4)).astype(np.int64), first]))
    windows, labels = _on_device(batch, network.device)
    score = Score(network, replace(explainer.explained, margin=(0.0, 0.0)), labels)
    (method, baseline), seed = explainer.maps, explainer.seed
    maps = attribute(score, windows, method=method, baseline=baseline, seed=seed)
    return Audit.Examples(
        volume=batch.places[:, 0],
        position=batch.places[:, 1:],
        images=(windows * 255).round().byte().cpu().numpy(),
        maps=maps.cpu().numpy(),
    )


def measure_batches(
    sample: WindowSample, explainer: Explainer, size: int, *, client: Any
) -> Generator[tuple[Measurements, str]]:
    """Measure the batches of a sample in order.

    Args:
        sample: the windows.
        explainer: what is asked of the network.
        size: how many windows a batch has at most.
        client: client of a Dask cluster, or None for this process.
    """
    if client is None:
        with closing(map_ahead(sample.read, sample.batches(size), threads=1, ahead=AHEAD)) as reading:
            yield from (measure(sample, explainer, batch) for batch in reading)
        return
    files = {
        volume.path: fingerprint(volume) for volume in sample.volumes if modified(volume)
    }  # not addresses, nor arrays in memory
    work = partial(_measure_on_worker, files=files)  # which reads for itself
    tasks = map_tasks(work, sample.batches(size), client, common=(sample, explainer), in_order=True)
    with closing(tasks) as measured:
        for _, outcome in measured:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


def _measure_on_worker(
    places: NDArray[np.int64], common: tuple[WindowSample, Explainer], files: Mapping[str, str]
) -> tuple[Measurements, str]:
    sample, explainer = common
    check_files(sample.volumes, files)
    read = sample.read(places)
    with _ALONE:
        return measure(sample, explainer, read)


def check_files(volumes: Sequence[Volume], files: Mapping[str, str]) -> None:
    """Raise VolumeError if a worker finds another file, or none, under the path of a volume; a copy is as good.

    Args:
        volumes: those that are read.
        files: the fingerprint that the command found under each path.
    """
    for volume in volumes:
        found = volume.path, files.get(volume.path)
        if found[1] is None or found in _CHECKED:
            continue
        if fingerprint(volume) != found[1]:
            raise VolumeError(
                f"{volume.path}: is missing on a worker, or has other content; all must find the same file under this path"
            )
        _CHECKED.add(found)


# What was run.


def scaling_source(model: nn.Module | Function) -> str:
    """Return where the scaling of slices in 0..1 comes from, as ``AuditRun.scaling`` says it.

    Example:
        >>> scaling_source(nn.Conv2d(3, 8, 3))
        'assumed'
    """
    if not isinstance(model, nn.Module):
        return "function"
    record = record_of(model)
    if record is not None:
        return "recorded" if uncompiled_record(model)[1] is record else "recorded on a part"
    return "assumed" if normalization(model) is None else "stated"


def describe_run(
    sample: WindowSample,
    explainer: Explainer,
    found: Found,
    *,
    model: nn.Module | Function,
    record: Record | None,
    labels: Sequence[Volume] | None,
    values: LabelValues,
    seconds: float,
) -> Any:
    """Return what an audit ran that ends now.

    Args:
        sample: the windows.
        explainer: what was asked of the network.
        found: what they say.
        model: the network.
        record: that of ``neutralize``, if there is one.
        labels: those of each volume as stored, if given.
        values: what the values of the labels mean.
        seconds: its duration.
    """
    grids, explained = sample.grids, explainer.explained
    network, measurements = explainer.network, found.measurements
    unmoved = ~(measurements.saliency.any(axis=(1, 2, 3)) | measurements.reliance.any(axis=(1, 2, 3)))
    return Audit.Run(
        slices=grids[0].slices,
        step=grids[0].step,
        strategy=record.strategy if record else None,
        tie=record.tie if record else None,
        method=explainer.method,
        baseline=explainer.baseline,
        maps=(explainer.maps[0], explainer.maps[1] or ""),
        use="gradient" if explainer.gradient else "replacement",
        target=explained.target,
        explained=explained.name,
        assumed=explained.assumed,
        outputs=None if network.outputs is None else function_name(network.outputs),
        label_options=None if labels is None else values.to_dict(),
        precision=sample.sampling.precision,
        windows_available=sum(map(len, grids)),
        windows_without_attribution=int(unmoved.sum()),
        stopped=found.stopped,
        tile=grids[0].tile,
        batch=found.batch,
        seed=sample.sampling.seed,
        device=", ".join(sorted(found.devices)),
        dtype=str(network.dtype).removeprefix("torch."),
        scaling={**network.scaling, "source": scaling_source(model)},
        clamped=float(measurements.clamped.mean()) if explained.probabilities else None,
        model={"class": network.name},
        volumes=tuple(_describe(grid, of) for grid, of in zip(grids, labels or repeat(None), strict=False)),
        versions=package_versions(PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 2),
    )


def _describe(grid: WindowGrid, labels: Volume | None) -> Any:
    volume = grid.volume
    same = ("path", "format", "shape", "region", "level", "spacing", "unit")
    return Audit.Volume(
        **{name: getattr(volume, name) for name in same},
        select=dict(volume.select),
        dtype=str(volume.dtype),
        fingerprint=fingerprint(volume),
        windows=len(grid),
        intensity=(grid.scaling.low, grid.scaling.high),
        fill=grid.scaling.fill,
        labels_path=None if labels is None else labels.path,
        labels=None if labels is None else fingerprint(labels),
    )
