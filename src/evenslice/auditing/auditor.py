"""Audits: windows of volumes are drawn, explained together with their mirrors, and judged until the word is settled.

Memory grows with the number of windows that are read, not with the size of the volumes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from evenslice._core import ConfigError, ModelError, option
from evenslice.auditing.attribution import check_method_of, choose_baseline, choose_map
from evenslice.auditing.documents import Audit, describe_run
from evenslice.auditing.explainer import Explainer
from evenslice.auditing.measuring import check_first, collect_examples, measure, read_until_settled
from evenslice.auditing.options import Sampling
from evenslice.auditing.sampling import WindowBatch, WindowSample, choose_tile, corner_of
from evenslice.auditing.targets import count_classes, parse_target, understand
from evenslice.inference import (
    Compute,
    Predictor,
    Segmenter,
    as_segmenter,
    make_ready,
    measure_stress,
)
from evenslice.networks import StemKernels, logits, require_network, with_gradients
from evenslice.neutralizing import record_with_names, uncompiled
from evenslice.results import Tolerances, summarize
from evenslice.volumes import (
    IGNORED,
    LabelValues,
    Reading,
    WindowGrid,
    check_classes,
    check_tile,
    each_reading,
    fit_scalings,
    in_plane,
    inner_margin,
    open_several,
    open_several_labels,
    open_volume,
    refuse_repeated,
    reslice,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.attribution import Function
    from evenslice.auditing.targets import Target
    from evenslice.neutralizing import Record
    from evenslice.volumes import Scaling, Volume, VolumeLike


STRESSED_SLICES = 16
STRESSED_SIDE = 1024
"""Pixels of a slice along y and x that are predicted: the middle of a larger one, so that the time does not grow with it."""


MOST_CHECKED = 2**28
"""Voxels of labels that are read before an audit, which takes seconds."""


@with_gradients
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
    """Measure how unequally a network treats the slices of its windows, and give a verdict about it on these volumes.

    Windows are drawn at random from all volumes, and each answers four questions: would a map of saliency favour a side, does
    the network rely on one, does the order of slices change its answers, and are opposite slices used in the same way? It
    ends once the verdict is settled. The network is not changed; a frozen copy of it runs, in evaluation mode.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled as ``neutralize`` recorded on it, else by the
            mean and std that its library states for pretrained weights, else not at all; if it was trained otherwise, an
            audit is wrong. Or any function, such as one from ``load_onnx``; see
            ``evenslice.inference.BlackBox`` for its input. Or either with its reading.
        volume: a volume, an array (z, y, x), a path, or several of these; several volumes are treated as independent
            samples, and none may be given twice.
        labels: class maps of the volumes' shapes, with which the audit also measures what a disturbed slice costs, unless
            windows have one slice: the ``stress`` of the result. The target "labels" needs them.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function or the segmenter, else 3.
        method: the attribution method for the question of saliency, one of ``evenslice.auditing.METHODS``; by
            default "gradient". Without a gradient, as of functions, the question is not asked. "occlusion" needs none, and
            the use of slices is then told by replacing them.
        baseline: "middle" or "gray": what "integrated_gradients" (by default "middle": a window whose slices all are the
            middle one) and "occlusion" ("gray", the window's mean) compare a window with.
        target: the output to explain: the log-odds of the class that is "predicted", of a class number or of the
            "labels", or the "sum" of all outputs. "auto" is "predicted" if the output has classes, that is two or four
            dimensions, or whole numbers that are those of classes, else "sum"; ``run.target`` of the result says which.
        outputs: maps what the network returns to the tensor of its outputs, batch first; by default
            ``evenslice.networks.logits`` does.
        reading: how volumes and labels are read, by default as the segmenter says; one for each volume where they differ in
            intensity or fill.
        sampling: which windows are read, and when the audit stops; the tile is by default that of the segmenter's crop.
        tolerances: what counts as fair.
        compute: where and how the network runs; figures in bfloat16 or float16 are all in it.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network rejects the windows, its output does not suit the target, or does not depend on the
            windows: nothing in the first 200 (or in all, if fewer) moves it; or its output or gradient is NaN or
            infinite for a window; or it differs between two runs of the same window, alone or beside another.
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
    target = parse_target(str(target))
    segmenter = as_segmenter(model, slices, labelled=labels is not None)
    model, slices, reading = segmenter.network, segmenter.slices, reading or segmenter.reading
    volumes = open_several(volume, reading.fill if isinstance(reading, Reading) else None)
    readings = each_reading(reading, volumes)
    read = readings[0]
    check_label_options(read, target, labelled=labels is not None)
    record = None
    if isinstance(model, nn.Module):
        require_network(model)
        model = uncompiled(model)
        record = record_with_names(model)
    volumes = [in_plane(item, own.plane) for item, own in zip(volumes, readings, strict=True)]
    refuse_repeated(volumes)
    stored = None if labels is None else open_several_labels(labels, volumes)
    asked = segmenter.crop if sampling.tile is None else check_tile(sampling.tile)
    check_method_of(model, method)
    network = make_ready(model, slices, compute, outputs=outputs)
    tile = asked or choose_tile(network, volumes)
    scalings = fit_scalings(volumes, readings, seed=sampling.seed)
    smallest = (min(item.shape[1] for item in volumes), min(item.shape[2] for item in volumes))
    margin = inner_margin(smallest, tile)
    grids = [
        WindowGrid(item, scaling, slices, tile, read.step, overlap=(2 * margin[0], 2 * margin[1]))
        for item, scaling in zip(volumes, scalings, strict=True)
    ]
    place = None if sampling.explain is None else _place(grids[0], sampling.explain)
    returned = network.prepare(slices, tile)
    understood = understand(
        network,
        returned,
        slices=slices,
        tile=tile,
        target=target,
        overlapping=None if target == "sum" else read.overlapping,
        margin=(margin[0] / tile[0], margin[1] / tile[1]),
    )
    opened = [read.labels.class_volume(item, count_classes(returned)) for item in stored or ()]
    stressed = stressed_volumes(returned, grids, opened) if sampling.stress and opened and slices > 1 else []
    for part in opened:  # so that a value of no class is found before anything is computed
        if part.size <= MOST_CHECKED and not isinstance(part.location, str):  # which is an address
            check_classes(part)
    explainer = Explainer(
        network,
        understood,
        method if method is not None else "gradient" if understood.gradient else "",
        understood.gradient and method != "occlusion",
        sampling.seed,
        None if method is None else choose_baseline(method, baseline),
        choose_map(method, baseline, gradient=understood.gradient),
    )
    sample = WindowSample(grids, sampling, opened if opened and understood.target == "labels" else None)
    sampling.check(sum(sample.population))
    check_first(sample, explainer)
    shown = [] if place is None else [measure(sample, explainer, sample.read(WindowBatch(place, pictures=1)))]
    found = read_until_settled(sample, explainer, tolerances, compute)
    lost = None
    if stressed:
        lost = measure_stress(
            Predictor(network, slices, read.step, asked, compute.batch),
            stressed,
            most_slices=STRESSED_SLICES,
            most_windows=sampling.max_windows,
            seed=sampling.seed,
            progress=compute.progress,
        ).summary()
    kernels = _kernels(model, record)
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(found.measurements, sample.population, tolerances, found.questions),
        windows=len(found.measurements),
        measurements=found.measurements,
        examples=collect_examples([*shown, *found.batches]),
        kernels=kernels,
        stress=lost,
        run=describe_run(
            sample,
            explainer,
            found,
            model=model,
            record=record,
            kernels=kernels,
            outputs=outputs,
            labels=stored,
            values=read.labels,
            seconds=time.monotonic() - started,
        ),
    )


def _place(grid: WindowGrid, explain: int | Sequence[int]) -> NDArray[np.int64]:
    """Return the window (1, 4) as volume, z, y, x around a voxel, or in the middle of a slice."""
    given = tuple(np.atleast_1d(explain).tolist())
    if len(given) not in (1, 3) or given[0] not in grid.centres:
        first, last = grid.centres[0], grid.centres[-1]
        raise ConfigError(
            f"{option('explain', explain)}: give a slice z whose window is complete, {first} to {last}, or a voxel z, y, x "
            "in one"
        )
    corner = corner_of("explain", given[1:] or None, grid.tile, grid.volume.shape[1:])
    return np.array([[0, given[0], *corner]], dtype=np.int64)


def _kernels(model: nn.Module | Function, record: Record | None) -> tuple[StemKernels, ...]:
    """Return the stems' kernels as ``neutralize`` recorded them, or as they stand in a network read from a file."""
    if record is None or not isinstance(model, nn.Module):
        return ()
    if record.kernels:
        return record.kernels
    weights = {
        name: cast("Tensor", model.get_submodule(name).weight).detach().float().cpu() for name in record.stems
    }
    arrays = {
        name: weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))).numpy()
        for name, weight in weights.items()
    }
    return tuple(StemKernels(name, array, array) for name, array in arrays.items())


def check_label_options(reading: Reading, target: Target, *, labelled: bool) -> None:
    """Raise ConfigError if there are no labels that an audit needs, or options of labels have no effect in it."""
    if not labelled and target == "labels":
        raise ConfigError(f"{option('target', target)} needs label volumes; give them as {option('labels')}")
    if not labelled:
        reading.labels.refuse()
    if reading.ignore_label is not None and target == "labels":
        raise ConfigError(
            f"{option('ignore_label', reading.ignore_label)}: the target 'labels' explains the class of every pixel; "
            "omit one of the two"
        )


# What a lost slice costs: the short form of the stress test, on a few slices.


def stressed_volumes(
    returned: Any, grids: Sequence[WindowGrid], labels: Sequence[Volume]
) -> list[tuple[Volume, Scaling, Volume]]:
    """Return what the stress test predicts: of each volume the middle of its slices, with its labels.

    Args:
        returned: what the network returned for a window.
        grids: the volumes, with their scaling.
        labels: the class of each voxel of each volume, 0, 1, 2 ..., or ``IGNORED``.

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
    known = LabelValues(ignore_label=IGNORED)
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
    if max(volume.shape[1:]) <= STRESSED_SIDE:
        return volume
    region = [
        slice(0, length) if axis == volume.plane else _middle(length)
        for axis, length in zip("zyx", reslice(volume, "z").shape, strict=True)
    ]
    return open_volume(volume, region=region)


def _middle(length: int) -> slice:
    size = min(length, STRESSED_SIDE)
    start = (length - size) // 2
    return slice(start, start + size)
