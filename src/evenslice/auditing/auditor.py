"""Streams the windows of volumes through attribution into the statistics of asymmetry.

Windows come in a stratified random order, each together with its mirror, until every judged pair bias is known
precisely enough, and enough slices have told about the answer, the second opinion and each class. Memory grows with the
number of windows, not with the size of the volume.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from evenslice._core import ModelError, open_cluster, option, progress_bar, whole_number
from evenslice.auditing.attribution import attribute
from evenslice.auditing.batches import MAX_WITHOUT_ATTRIBUTION, WindowStream, with_subset
from evenslice.auditing.collecting import (
    collect_examples,
    collect_measurements,
    collect_subset,
    count_attributed,
)
from evenslice.auditing.documents import Audit
from evenslice.auditing.lost_slices import measure_loss
from evenslice.auditing.measurer import Measurer
from evenslice.auditing.measuring import measure_batches
from evenslice.auditing.options import Computing, Sampling, check_label_options, check_thresholds
from evenslice.auditing.preparation import (
    check_method_of,
    choose_crop,
    choose_methods,
    choose_tile,
)
from evenslice.auditing.run_description import describe_run
from evenslice.auditing.stopping import knows_enough
from evenslice.auditing.targets import count_classes, parse_target, resolve_target
from evenslice.inference import BlackBox, choose_slices, make_ready, refuse_sigmoid
from evenslice.networks import StemKernels, with_gradients
from evenslice.neutralizing import record_with_names
from evenslice.results import SAME_OUTPUT, Thresholds, next_look, summarize
from evenslice.volumes import (
    LabelValues,
    WindowGrid,
    check_tile,
    fit_scalings,
    open_several,
    open_several_labels,
    refuse_repeated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evenslice.auditing.measuring import MeasuredBatch
    from evenslice.auditing.preparation import Function
    from evenslice.auditing.targets import Target
    from evenslice.neutralizing import Record
    from evenslice.volumes import Scaling, VolumeLike

__all__ = ["audit"]

MOST = 8  # windows in one pass; an audit first looks at what it knows after 40
CACHED_PIXELS = 2**17  # of windows in float32
MOST_ON_GPU = 32  # windows in one pass: more would hardly be faster, and an audit stops between passes


@with_gradients
def audit(  # noqa: PLR0913  # the main entry point: all but two arguments have defaults and names
    model: nn.Module | Function,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    slices: int | None = None,
    step: int = 1,
    method: str | None = None,
    target: Target = "auto",
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
    precision: float = 0.01,
    max_windows: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Audit:
    """Measure how unequally a network treats the slices of its windows, and how much of that is due to the network.

    The network is not changed; a frozen copy of it runs.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled as ``neutralize`` recorded on it, else by the
            mean and std that its library states for pretrained weights, else not at all; if it was trained otherwise, an
            audit is wrong. Or any function, such as one from ``load_onnx``; see
            ``evenslice.inference.black_boxes.BlackBox`` for its input.
        volume: a volume, an array (z, y, x), a path, or several of these; several volumes are treated as independent
            samples, and none may be given twice.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function, else 3.
        step: distance between neighbouring slices of a window.
        method: the attribution method, one of ``evenslice.auditing.methods.METHODS``; by default "gradient", or
            "occlusion" for a function, which supports no other. On some of the windows a network with a gradient
            gets a second opinion: from "occlusion", or from "gradient" if ``method`` is "occlusion".
        target: the output to explain: the logit of the class that is "predicted", of a class number or of the
            "labels", or the "sum" of all outputs. "auto" is "predicted" if the output has classes, that is two or four
            dimensions, or whole numbers that are those of classes, else "sum"; ``run.target`` of the result says which.
            With "sum", the mirror disagreement is not measured.
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
        stress: with labels, also measure what a disturbed slice costs; an audit of the same network by another method
            need not do so again.
        tile: size (y, x) of the in-plane tile; by default the size the network requires, or up to 256 of a plane that
            is no larger, and 128 of larger planes.
        tolerance: the largest absolute pair bias B_k that counts as equal attention, 0..1.
        answer_tolerance: the largest part C of the answer that may change when a window is reversed, 0..1.
        mismatch_tolerance: the largest mirror mismatch E of a network that uses opposite slices in the same way, 0..1.
        judged_share: the share of attention that a pair must get to be judged, 0..1; with K pairs of slices and K > 2,
            2/K of it.
        precision: stop when the half-widths of the 95 % intervals of all judged pair biases are below this, and 8 slices
            have an answer, a second opinion and attention to each class, or 200 windows were measured; 400 if no class has
            changed in any window although scores have.
        max_windows: largest number of windows; by default all that there are.
        batch: windows per pass of the network; by default the fastest number, on a GPU as many as half of its free
            memory holds, at most 32. Fewer once memory runs out.
        seed: random seed for the order of the windows and for methods that draw samples, 0 to 2**63 - 1.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        dtype: "bfloat16", "float32" or "auto": bfloat16 if the hardware supports it and if, on the first windows, the
            mean shares agree with those in float32 to 0.002 and the pair biases to half the precision; else float32.
            With bfloat16, answer and use are measured in float32, on the windows that get a second opinion. "float16"
            (on a GPU) is checked in the same way, and what overflows in it is computed again in float32.
        workers: number of processes to start on this machine; by default none. The results do not depend on it.
        scheduler: address of a Dask scheduler whose workers to use instead; they must see files under the same paths.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network rejects the windows, its output does not suit the target, or does not depend on the
            windows: none of the first 200 (or of all, if fewer) has an attribution; or its output or gradient is NaN or
            infinite for a window.
        ConfigError: an option is out of range or has no effect, the function cannot be sent to workers, or the scheduler
            does not answer.
        EvensliceError: worker processes do not start, or windows killed every one that took them.
        MissingExtraError: there are to be workers, and Dask is not installed.

    Example: a network that reads only the slice before the middle.
        >>> network = torch.nn.Conv2d(3, 1, 1, bias=False)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).random((64, 32, 32))
        >>> found = audit(network, volume, dtype="float32")
        >>> found.verdict, [share.estimate for share in found.shares], found.directional_bias.estimate
        ('biased', [1.0, 0.0, 0.0], -1.0)
    """
    started = time.monotonic()
    sampling = Sampling(precision, max_windows, batch, seed)
    max_windows, batch, seed, step = (
        sampling.max_windows,
        sampling.batch,
        sampling.seed,
        whole_number("step", step),
    )
    thresholds = check_thresholds(Thresholds(tolerance, answer_tolerance, mismatch_tolerance, judged_share))
    computing = Computing(device, dtype, workers, scheduler, progress)
    target = parse_target(str(target))
    values = LabelValues(
        label_values=label_values, other_labels=other_labels, ignore_label=ignore_label, instances=instances
    )
    check_label_options(values, target, labelled=labels is not None)
    record = record_with_names(model) if isinstance(model, nn.Module) else None
    slices = choose_slices(model) if slices is None else whole_number("slices", slices)
    volumes = open_several(volume, fill)
    refuse_repeated(volumes)
    asked = None if tile is None else check_tile(tile)
    tile = asked or choose_tile(model, volumes)
    scalings = fit_scalings(volumes, scalings, name="scalings", intensity=intensity, fill=fill, seed=seed)
    grids = [
        WindowGrid(item, scaling, slices, tile, step) for item, scaling in zip(volumes, scalings, strict=True)
    ]
    check_method_of(model, method)
    sent = workers is not None or scheduler is not None
    network, _ = make_ready(model, slices, device=device, dtype=dtype, outputs=outputs, sent=sent)
    returned = network.prepare(slices, tile)
    target = resolve_target(target, returned)
    if target != "sum":
        or_else = f", or audit its plain output with {option('target', 'sum')}"
        refuse_sigmoid(network, returned, slices, tile, or_else=or_else)
    stored = None if labels is None else open_several_labels(labels, volumes)
    opened = stored and [values.class_volume(item, count_classes(returned)) for item in stored]
    methods = choose_methods(network, method, slices, tile)
    crop = choose_crop(network, slices, tile)
    explained = opened if target == "labels" else None
    measurer = Measurer(network, grids, explained, target, methods, crop, seed)
    stream = with_subset(WindowStream(grids, seed, max_windows), methods, crop)
    lost = None
    if stress and opened is not None and slices > 1:
        # Before the windows, so that labels that do not fit are found at once.
        lost = measure_loss(
            network, returned, grids, opened, tile=asked, batch=batch, seed=seed, progress=progress
        )
    batches, stopped = _collect(stream, measurer, sampling, thresholds, computing)
    measurements = collect_measurements(batches)
    kernels = _kernels(model, record)
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(measurements, collect_subset(batches), thresholds, methods),
        measurements=measurements,
        subset=collect_subset(batches),
        examples=collect_examples(batches),
        kernels=kernels,
        stress=lost,
        run=describe_run(
            measurer,
            batches,
            record=record,
            kernels=kernels,
            outputs=outputs,
            labels=stored,
            values=values,
            precision=sampling.precision,
            batch=sampling.batch or _batch_size(measurer),
            seed=sampling.seed,
            stopped=stopped,
            seconds=time.monotonic() - started,
        ),
    )


def _collect(
    stream: WindowStream, measurer: Measurer, sampling: Sampling, thresholds: Thresholds, computing: Computing
) -> tuple[list[MeasuredBatch], str]:
    """Measure windows until enough is known; return the batches and why it stopped.

    The first look waits for windows with an attribution in both orders: a detector may find something in few of them.
    Without any, pair biases will not be known, so an audit ends early, with what the answer tells.
    """
    collected: list[MeasuredBatch] = []
    seen, attributed, either, look = 0, 0, 0, next_look(0)
    with (
        open_cluster(computing.workers, computing.scheduler) as client,
        progress_bar(
            "audit", stream.limit, "windows at most", show=computing.progress, remaining=False
        ) as advance,
        closing(
            measure_batches(
                stream,
                lambda: sampling.batch or _batch_size(measurer),
                measurer,
                sampling.precision,
                check_dtype=computing.dtype in ("auto", "float16"),  # small gradients vanish in float16
                client=client,
            )
        ) as measured,
    ):
        for batch in measured:
            collected.append(batch)
            advance(len(batch.places))
            seen += len(batch.places)
            in_both, in_either = count_attributed(batch)
            attributed, either = attributed + in_both, either + in_either
            if seen >= look:
                look = next_look(seen)
                enough = attributed >= next_look(0)
                if enough and knows_enough(collected, sampling.precision, thresholds, measurer.methods):
                    return collected, "precision reached"
            if not attributed and seen >= min(MAX_WITHOUT_ATTRIBUTION, stream.limit):
                if not either:
                    # Probabilities react to the input, but their sum does not.
                    reacts = measurer.target != "sum" and any(
                        (batch.rows["mirror_error"] > SAME_OUTPUT).any() for batch in collected
                    )
                    raise _without_attribution(seen, classes=measurer.classes, reacts=reacts)
                if seen < stream.limit:
                    return collected, "no attribution"
                break
    return collected, "all windows used" if seen == stream.available else "limit reached"


def _without_attribution(seen: int, *, classes: bool, reacts: bool) -> ModelError:
    if reacts:  # as to reversed windows: it has steps where others have slopes
        return ModelError(
            f"the network's output has no gradient with respect to its input: none of {seen} windows has an "
            f"attribution; measure by {option('method', 'occlusion')}"
        )
    advice = "check the network, or" if classes else "if it detects nothing, lower its score threshold; else"
    return ModelError(
        f"the network's output does not depend on its input: none of {seen} windows has an attribution; "
        f"{advice} explain "
        f"another output ({option('target')}, {option('outputs')})"
    )


def _batch_size(measurer: Measurer) -> int:
    """Return the fastest number of windows in one pass: on a CPU, what stays in its cache."""
    network, grid, method = measurer.network, measurer.grids[0], measurer.methods.first
    if isinstance(network, BlackBox) or network.device.type not in ("cpu", "cuda"):
        return MOST
    if network.device.type == "cpu":
        cached = CACHED_PIXELS * torch.float32.itemsize // network.dtype.itemsize
        return next((count for count in (MOST, 4, 2) if count * math.prod(grid.tile) <= cached), 1)

    def explain(count: int) -> None:
        shape = (count, grid.slices, *grid.tile)
        windows = torch.zeros(shape, dtype=torch.float32, device=network.device)
        attribute(network, windows, method=method, target="auto" if measurer.classes else "sum")

    kind = (method, network.dtype, grid.slices, *grid.tile)
    return network.batches.fitting(explain, network.device, most=MOST_ON_GPU, kind=kind)


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
