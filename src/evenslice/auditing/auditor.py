"""Audits: windows of volumes are drawn, explained together with their mirrors, and judged until the word is settled.

Memory grows with the number of windows that are read, not with the size of the volumes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from evenslice._core import ConfigError, option, whole_number
from evenslice.auditing.attribution import check_method_of, choose_baseline, choose_map
from evenslice.auditing.documents import Audit, describe_run, scaling_source
from evenslice.auditing.explaining import Explainer
from evenslice.auditing.lost_slices import check_labels, count_stressed, measure_loss, stressed_volumes
from evenslice.auditing.measuring import (
    Measurer,
    WindowBatch,
    WindowSample,
    choose_tile,
    collect_examples,
    corner_of,
)
from evenslice.auditing.options import Computing, Sampling, check_label_options, check_thresholds
from evenslice.auditing.stopping import batch_size, check_first, read_until_settled
from evenslice.auditing.targets import count_classes, parse_target, understand
from evenslice.inference import choose_slices, make_ready
from evenslice.networks import StemKernels, refuse_torchscript, with_gradients
from evenslice.neutralizing import record_with_names, uncompiled
from evenslice.results import Thresholds, summarize
from evenslice.volumes import (
    LabelValues,
    WindowGrid,
    check_tile,
    fit_scalings,
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
    from evenslice.volumes import Scaling, VolumeLike

__all__ = ["audit"]


@with_gradients
def audit(  # noqa: PLR0913  # the main entry point: all but two arguments have defaults and names
    model: nn.Module | Function,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    slices: int | None = None,
    step: int = 1,
    method: str | None = None,
    baseline: str | None = None,
    explain: int | Sequence[int] | None = None,
    target: Target = "auto",
    overlapping: bool | None = None,
    outputs: Function | None = None,
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    label_values: Sequence[int] | None = None,
    other_labels: str = "error",
    ignore_label: int | None = None,
    instances: str | None = None,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    scalings: Sequence[Scaling] | None = None,
    stress: bool = True,
    tile: tuple[int, int] | None = None,
    tolerance: float = Thresholds.attention,
    answer_tolerance: float = Thresholds.answer,
    mismatch_tolerance: float = Thresholds.use,
    judged_share: float = Thresholds.judged,
    judged_class: float = Thresholds.judged_class,
    precision: float | None = None,
    min_windows: int = 40,
    max_windows: int = 2000,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Audit:
    """Measure how unequally a network treats the slices of its windows, and give a verdict about it on these volumes.

    Windows are drawn at random from all volumes, and each answers four questions: would a map of saliency favour a side, does
    the network rely on one, does the order of slices change its answers, and are opposite slices used in the same way? It
    ends once the verdict is settled. The network is not changed; a frozen copy of it runs, in evaluation mode.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled as ``neutralize`` recorded on it, else by the
            mean and std that its library states for pretrained weights, else not at all; if it was trained otherwise, an
            audit is wrong. Or any function, such as one from ``load_onnx``; see
            ``evenslice.inference.black_boxes.BlackBox`` for its input.
        volume: a volume, an array (z, y, x), a path, or several of these; several volumes are treated as independent
            samples, and none may be given twice.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function, else 3.
        step: distance between neighbouring slices of a window.
        method: the attribution method for the question of saliency, one of ``evenslice.auditing.methods.METHODS``; by
            default "gradient". Without a gradient, as of functions, the question is not asked. "occlusion" needs none, and
            the use of slices is then told by replacing them.
        baseline: "middle" or "gray": what "integrated_gradients" (by default "middle": a window whose slices all are the
            middle one) and "occlusion" ("gray", the window's mean) compare a window with.
        explain: a slice z of the first volume, or (z, y, x), whose window is the first of the examples: the one around that
            voxel, or in the middle of the plane. For other sizes and methods see ``evenslice.explain``.
        target: the output to explain: the log-odds of the class that is "predicted", of a class number or of the
            "labels", or the "sum" of all outputs. "auto" is "predicted" if the output has classes, that is two or four
            dimensions, or whole numbers that are those of classes, else "sum"; ``run.target`` of the result says which.
        overlapping: whether several channels of the output can be on at once, as with a sigmoid for each, and are classes of
            their own; False if they exclude each other. By default a sigmoid at the end of the network tells; else they
            are assumed to exclude each other.
        outputs: maps what the network returns to the tensor of its outputs, batch first; by default
            ``evenslice.networks.logits`` does.
        labels: class maps of the volumes' shapes, with which the audit also measures what a disturbed slice costs, unless
            windows have one slice: the ``stress`` of the result. The target "labels" needs them.
        label_values: the value of each class in the labels; by default 0, 1, 2 ...
        other_labels: what all other values in the labels mean: an "error", or "background", which is class 0.
        ignore_label: the value of voxels that do not count in the ``stress``; not with the target "labels".
        instances: "sparse" or "dense" if the labels number objects, whose boundaries within slices are then class 1:
            "sparse" for objects on a background, 0; "dense" for objects that fill the volume, where 0 is boundary too.
        intensity: the voxel values that become 0 and 1; by default percentiles of each volume.
        fill: the voxel value that replaces NaN and infinity, and masked voxels of an array.
        scalings: the scaling of each volume, if known from training, instead of intensity and fill.
        stress: with labels, measure at the end what a disturbed slice costs, too; an audit of the same network by another
            method need not do so again.
        tile: size (y, x) of the in-plane tile; by default the size the network requires, or up to 256 of a plane that
            is no larger, and 192 of larger planes, of which the inner 160 are compared.
        tolerance: the largest absolute pair bias B_k, of saliency and of reliance, that counts as equal, 0..1.
        answer_tolerance: the largest part C of an answer that may change when a window is reversed, 0..1.
        mismatch_tolerance: the largest mirror mismatch E of a network that uses opposite slices in the same way, 0..1.
        judged_share: the share of the saliency that a pair must get to be judged, 0..1; with K pairs of slices and K > 2,
            2/K of it. For reliance, the part of what is explained that its slices must change.
        judged_class: the part of the pixels that a class must cover to be judged, 0..1; the two largest always are.
        precision: also go on until the half-widths of the 95 % intervals of all judged B and C are below this.
        min_windows: number of windows before which an audit does not end, unless there are fewer.
        max_windows: largest number of windows, and of those that the ``stress`` shows, but those of one slice.
        batch: windows per pass of the network, beside as many mirrors; by default the fastest number, on a GPU as many as
            half of its free memory holds, at most 32. Fewer once memory runs out.
        seed: random seed for the order of the windows and for methods that draw samples, 0 to 2**63 - 1.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        dtype: "float32", which "auto" stands for; or "bfloat16" or "float16" (on a GPU), with all figures in it.
        workers: number of processes to start on this machine; by default none. The results do not depend on it.
        scheduler: address of a Dask scheduler whose workers to use instead; they must see files under the same paths.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network rejects the windows, its output does not suit the target, or does not depend on the
            windows: nothing in the first 200 (or in all, if fewer) moves it; or its output or gradient is NaN or
            infinite for a window; or it differs between two runs of the same window, alone or beside another.
        ConfigError: an option is out of range or has no effect, the function cannot be sent to workers, or the scheduler
            does not answer.
        EvensliceError: worker processes do not start, or windows killed every one that took them.
        MissingExtraError: there are to be workers, and Dask is not installed.

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
    sampling = Sampling(precision, max_windows, min_windows, batch, seed)
    step = whole_number("step", step)
    thresholds = check_thresholds(
        Thresholds(tolerance, answer_tolerance, mismatch_tolerance, judged_share, judged_class)
    )
    computing = Computing(device, dtype, workers, scheduler, progress)
    target = parse_target(str(target))
    values = LabelValues(
        label_values=label_values, other_labels=other_labels, ignore_label=ignore_label, instances=instances
    )
    check_label_options(values, target, labelled=labels is not None)
    record = None
    if isinstance(model, nn.Module):
        refuse_torchscript(model)
        model = uncompiled(model)
        record = record_with_names(model)
    slices = choose_slices(model) if slices is None else whole_number("slices", slices)
    volumes = open_several(volume, fill)
    refuse_repeated(volumes)
    stored = None if labels is None else open_several_labels(labels, volumes)
    asked = None if tile is None else check_tile(tile)
    tile = asked or choose_tile(model, volumes)
    scalings = fit_scalings(
        volumes, scalings, name="scalings", intensity=intensity, fill=fill, seed=sampling.seed
    )
    smallest = (min(item.shape[1] for item in volumes), min(item.shape[2] for item in volumes))
    margin = inner_margin(smallest, tile)
    grids = [
        WindowGrid(item, scaling, slices, tile, step, overlap=(2 * margin[0], 2 * margin[1]))
        for item, scaling in zip(volumes, scalings, strict=True)
    ]
    check_method_of(model, method)
    place = None if explain is None else _place(grids[0], explain)
    network, _ = make_ready(
        model,
        slices,
        device=device,
        dtype=dtype,
        outputs=outputs,
        sent=workers is not None or scheduler is not None,
    )
    returned = network.prepare(slices, tile)
    understood = understand(
        network,
        returned,
        slices=slices,
        tile=tile,
        target=target,
        overlapping=overlapping,
        margin=(margin[0] / tile[0], margin[1] / tile[1]),
    )
    opened = [values.class_volume(item, count_classes(returned)) for item in stored or ()]
    stressed = stressed_volumes(returned, grids, opened) if stress and opened and slices > 1 else []
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
    sample = WindowSample(grids, sampling.seed, sampling.max_windows, sampling.min_windows)
    sampling.check(sum(sample.population))
    check_first(measurer, sample)
    shown = [] if place is None else [measurer.measure(measurer.read(WindowBatch(place, pictures=1)))]
    found = read_until_settled(sample, measurer, sampling, thresholds, computing)
    lost = None
    if stressed:
        lost = measure_loss(
            network,
            stressed,
            grids[0],
            most_slices=most_stressed,
            tile=asked,
            batch=batch,
            seed=sampling.seed,
            progress=progress,
        )
    kernels = _kernels(model, record)
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(found.measurements, sample.population, thresholds, found.questions),
        windows=len(found.measurements),
        measurements=found.measurements,
        examples=collect_examples([*shown, *found.batches]),
        kernels=kernels,
        stress=lost,
        run=describe_run(
            measurer,
            found.batches,
            found.measurements,
            understood=understood,
            source=scaling_source(model),
            record=record,
            kernels=kernels,
            outputs=outputs,
            labels=stored,
            values=values,
            precision=sampling.precision,
            batch=sampling.batch or batch_size(measurer),
            seed=sampling.seed,
            stopped=found.stopped,
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
