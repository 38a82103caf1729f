"""Audits: windows of volumes are drawn, explained together with their mirrors, and judged until the word is settled.

Memory grows with the number of windows that are read, not with the size of the volumes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from evenslice._core import ConfigError, option
from evenslice.auditing.attribution import check_method_of, choose_baseline, choose_map
from evenslice.auditing.documents import Audit, describe_run
from evenslice.auditing.explaining import Explainer
from evenslice.auditing.lost_slices import check_labels, count_stressed, stressed_volumes
from evenslice.auditing.measuring import (
    Measurer,
    WindowBatch,
    WindowSample,
    choose_tile,
    collect_examples,
    corner_of,
)
from evenslice.auditing.options import Sampling, check_label_options
from evenslice.auditing.stopping import check_first, read_until_settled
from evenslice.auditing.targets import count_classes, parse_target, understand
from evenslice.inference import Compute, Segmenter, as_segmenter, make_ready, stress
from evenslice.networks import StemKernels, refuse_torchscript, with_gradients
from evenslice.neutralizing import record_with_names, uncompiled
from evenslice.results import Tolerances, summarize
from evenslice.volumes import (
    Reading,
    WindowGrid,
    check_tile,
    each_reading,
    fit_scalings,
    in_plane,
    inner_margin,
    open_several,
    open_several_labels,
    refuse_repeated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.attribution import Function
    from evenslice.auditing.targets import Target
    from evenslice.neutralizing import Record
    from evenslice.volumes import VolumeLike

__all__ = ["audit"]


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
        refuse_torchscript(model)
        model = uncompiled(model)
        record = record_with_names(model)
    volumes = [in_plane(item, own.plane) for item, own in zip(volumes, readings, strict=True)]
    refuse_repeated(volumes)
    stored = None if labels is None else open_several_labels(labels, volumes)
    asked = segmenter.crop if sampling.tile is None else check_tile(sampling.tile)
    tile = asked or choose_tile(model, volumes)
    scalings = fit_scalings(volumes, readings, seed=sampling.seed)
    smallest = (min(item.shape[1] for item in volumes), min(item.shape[2] for item in volumes))
    margin = inner_margin(smallest, tile)
    grids = [
        WindowGrid(item, scaling, slices, tile, read.step, overlap=(2 * margin[0], 2 * margin[1]))
        for item, scaling in zip(volumes, scalings, strict=True)
    ]
    check_method_of(model, method)
    place = None if sampling.explain is None else _place(grids[0], sampling.explain)
    network = make_ready(model, slices, compute, outputs=outputs)
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
    most_stressed = count_stressed(max(slices, 3), sampling.max_windows)
    check_labels(opened, stressed, most_stressed)
    explainer = Explainer(
        network,
        understood.explained,
        method if method is not None else "gradient" if understood.gradient else "",
        understood.gradient and method != "occlusion",
        sampling.seed,
        None if method is None else choose_baseline(method, baseline),
        choose_map(method, baseline, gradient=understood.gradient),
    )
    labelled = opened if opened and understood.explained.target == "labels" else None
    measurer = Measurer(explainer, grids, labelled)
    sample = WindowSample(grids, sampling)
    sampling.check(sum(sample.population))
    check_first(measurer, sample)
    shown = [] if place is None else [measurer.measure(measurer.read(WindowBatch(place, pictures=1)))]
    found = read_until_settled(sample, measurer, tolerances, compute)
    lost = None
    if stressed:
        lost = stress(
            network,
            stressed,
            slices=slices,
            step=read.step,
            most_slices=most_stressed,
            tile=asked,
            batch=compute.batch,
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
            measurer,
            found,
            understood,
            model=model,
            record=record,
            kernels=kernels,
            outputs=outputs,
            labels=stored,
            values=read.labels,
            sampling=sampling,
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
