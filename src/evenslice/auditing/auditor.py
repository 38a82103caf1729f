"""Streams the windows of volumes through attribution into the statistics of asymmetry.

Windows come in a stratified seeded random order, each with its mirror beside it, until every pair bias is known
precisely enough. What is kept grows with the number of windows, not with the size of the volume.
"""

from __future__ import annotations

import datetime as dt
import platform
import time
from contextlib import suppress
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import (
    ConfigError,
    ModelError,
    VolumeError,
    check_sendable,
    open_cluster,
    option,
    progress_bar,
)
from evenslice.auditing.attribution import Target, attribute, check_method, parse_target, settle_target
from evenslice.auditing.documents import Audit
from evenslice.auditing.measurement import Job, WindowStream, measured
from evenslice.inference import BlackBox, ReadyNetwork
from evenslice.networks import function_name, input_multiple, input_size
from evenslice.neutralizing import record_of
from evenslice.results import Examples, Measurements, StemKernels, next_look, precise_enough, summarize
from evenslice.volumes import Volume, WindowGrid, fingerprint, fit_scaling, fit_tile, open_volume

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.measurement import Measured, Network
    from evenslice.neutralizing import Record
    from evenslice.volumes import Scaling

    VolumeLike = Volume | NDArray[Any] | str | os.PathLike[str]
    Function = Callable[[Any], Any]

__all__ = ["audit"]

SILENT = 200  # windows without any attribution after which an audit gives up
PACKAGES = (
    "evenslice",
    "torch",
    "numpy",
    "scipy",
    "captum",
    "timm",
    "segmentation-models-pytorch",
    "torchvision",
    "onnxruntime",
)


def audit(  # noqa: PLR0913  # the one entry to the main job: all but two arguments have defaults and names
    model: nn.Module | Function,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    slices: int | None = None,
    step: int = 1,
    method: str | None = None,
    target: Target = "auto",
    outputs: Function | None = None,
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    scalings: Sequence[Scaling] | None = None,
    tile: tuple[int, int] | None = None,
    tolerance: float = 0.05,
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
    """Measure how unequally a network treats the slices of its windows, and whose fault that is.

    The network itself is left as it is; a frozen copy runs.

    Args:
        model: maps (batch, slices, y, x) to logits. What ``neutralize`` recorded on it says how slices are scaled. Or any
            function, such as ``load_onnx`` returns: see ``evenslice.inference.black_boxes.BlackBox`` for what it is given.
        volume: what to show it: a volume, an array (z, y, x), a path, or several of these; several volumes are
            treated as independent samples.
        slices: N, odd; by default as many as ``neutralize`` recorded, or as the function states, else 3.
        step: distance between neighbouring slices of a window.
        method: of attribution, one of ``evenslice.auditing.attribution.METHODS``; by default "gradient", or "occlusion" for a
            function, for which there is no other.
        target: what is explained: the logit of the class that is "predicted", of a class number or of the "labels", or
            the "sum" of all outputs. "auto" is "predicted" where the output has classes, which is what two or four
            dimensions are taken for, else "sum"; ``run["target"]`` says which it was. With "sum" no disagreement of
            classes is measured.
        outputs: maps what the network returns to the tensor of its outputs, batch first, in place of the rule of
            ``evenslice.networks.models.logits``.
        labels: class maps of the volumes' shapes, for the target "labels".
        intensity: the voxel values that become 0 and 1; by default percentiles of each volume.
        fill: the voxel value that stands in for NaN and infinity.
        scalings: that of each volume, where it is known from training, instead of intensity and fill.
        tile: size (y, x) of the in-plane tile; by default up to 256, or the size the network insists on.
        tolerance: the largest absolute pair bias that still counts as symmetric, 0..1.
        precision: stop when the half-widths of the 95 % intervals of all pair biases are below this.
        max_windows: stop after so many windows in any case.
        batch: windows in one pass of the network; by default as many as are fastest.
        seed: of the order of the windows and of the methods that draw samples.
        device: "auto" (a GPU if there is one) or a PyTorch device name.
        dtype: "bfloat16", "float32" or "auto": bfloat16 where the hardware has it and where it gives the same mean
            shares on the first windows to 0.002 and the same pair biases to half the precision, else float32. With
            bfloat16, what a mirror does to the output is measured in float32, on four windows of every 64.
        workers: processes to start on this machine; by default this one does all. What is found does not depend on it.
        scheduler: address of a Dask scheduler whose workers to use instead; they must see files under the same paths.
        progress: show a progress bar on standard error; by default where that is a terminal.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network refuses the windows, its output does not suit the target, or it does not depend on the
            windows: none of the first 200, or of fewer where there are no more, has an attribution.
        ConfigError: an option is out of range or has no effect, or the function cannot be sent to workers.

    Example: a network that reads the slice before the middle alone.
        >>> network = torch.nn.Conv2d(3, 1, 1, bias=False)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        >>> volume = np.random.default_rng(0).random((64, 32, 32))
        >>> found = audit(network, volume, dtype="float32")
        >>> found.verdict, [share.estimate for share in found.shares], found.directional_bias.estimate
        ('biased', [1.0, 0.0, 0.0], -1.0)
    """
    started = time.monotonic()
    _check_ranges(tolerance=tolerance, precision=precision, max_windows=max_windows, batch=batch, seed=seed)
    target = parse_target(str(target))
    if (labels is not None) != (target == "labels"):
        raise ConfigError(
            f"label volumes and the target 'labels' go together: give {option('labels')} and {option('target', 'labels')}, or neither"
        )
    record = record_of(model) if isinstance(model, nn.Module) else None
    method = _choose_method(model, method)
    if slices is None:
        slices = _choose_slices(model, record)
    volumes = _open_all(volume)
    tile = tile or _choose_tile(model, volumes)
    if min(tile) < 1:
        raise ConfigError(f"tile = {tile[0]} x {tile[1]}: each side must be at least 1")
    if scalings is not None and (intensity is not None or fill is not None):
        raise ConfigError("intensity and fill have no effect beside scalings; give one or the other")
    if scalings is None:
        scalings = [fit_scaling(item, intensity=intensity, fill=fill, seed=seed) for item in volumes]
    grids = [
        WindowGrid(item, scaling, slices, tile, step) for item, scaling in zip(volumes, scalings, strict=True)
    ]
    stream = WindowStream(grids, seed, max_windows)
    network = _make_ready(model, slices, outputs=outputs, device=device, dtype=dtype)
    target = settle_target(target, network.prepare(slices, tile))
    explain = partial(attribute, method=method, target=target, seed=seed)
    job = Job(network, grids, _open_labels(labels, volumes), explain, classes=target != "sum")
    if workers is not None or scheduler is not None:
        _check_sendable(network)
    with open_cluster(workers, scheduler) as client:
        collected, stopped = _collect(
            stream, job, precision, batch=batch, check_dtype=dtype == "auto", client=client, progress=progress
        )
    measurements = _measurements(collected)
    kernels = _kernels(model, record)
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(measurements, tolerance),
        measurements=measurements,
        examples=_examples(collected),
        kernels=kernels,
        run={
            "slices": slices,
            "step": step,
            "strategy": record.strategy if record else None,
            "tie": record.tie if record else None,
            "method": method,
            "target": target,
            "outputs": None if outputs is None else function_name(outputs),
            "precision": precision,
            "windows_available": stream.available,
            "windows_without_attribution": len(measurements.volume)
            - _told(measurements.shares, measurements.mirrored_shares),
            "stopped": stopped,
            "tile": list(tile),
            "batch": batch or _batch_size(network),
            "seed": seed,
            "device": str(network.device),
            "dtype": str(network.dtype).removeprefix("torch."),
            "scaling": network.scaling,
            "model": {"class": network.name},
            "stems": [{"name": stem.name, "shape": list(stem.after.shape)} for stem in kernels],
            "volumes": [_describe(grid) for grid in grids],
            "command": None,
            "versions": _versions(),
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _collect(
    stream: WindowStream,
    job: Job,
    precision: float,
    *,
    batch: int | None,
    check_dtype: bool,
    client: Any,
    progress: bool | None,
) -> tuple[list[Measured], str]:
    """Measure windows until the pair biases are known precisely; say why it stopped.

    Only windows with an attribution count: a detector may find something in few of them.
    """
    collected: list[Measured] = []
    seen, told = 0, 0
    batches, look = stream.batches(lambda: batch or _batch_size(job.network)), next_look(0)
    with progress_bar("audit", stream.limit, "windows at most", show=progress, remaining=False) as advance:
        for found in measured(batches, job, precision, check_dtype=check_dtype, client=client):
            collected.append(found)
            advance(len(found.places))
            seen += len(found.places)
            told += _told(found.rows["shares"], found.rows["mirrored_shares"])
            if told >= look:
                if precise_enough(_measurements(collected), precision):
                    return collected, "precision reached"
                look = next_look(told)
            if not told and seen >= min(SILENT, stream.limit):
                raise _silent(seen, classes=job.classes)
    return collected, "all windows used" if stream.limit == stream.available else "limit reached"


def _told(shares: NDArray[np.float64], mirrored_shares: NDArray[np.float64]) -> int:
    """Count the windows that have an attribution, they and their mirrors."""
    return int((~np.isnan(shares + mirrored_shares).any(axis=1)).sum())


def _silent(seen: int, *, classes: bool) -> ModelError:
    advice = (
        "see to the network, or" if classes else "if it detects nothing, lower its threshold of scores; else"
    )
    return ModelError(
        f"the network's output does not depend on its input: none of {seen} windows has an attribution; {advice} explain "
        f"another output ({option('target')}, {option('outputs')})"
    )


def _make_ready(
    model: nn.Module | Function, slices: int, *, outputs: Function | None, device: str, dtype: str
) -> Network:
    if isinstance(model, nn.Module):
        return ReadyNetwork(model, slices=slices, device=device, dtype=dtype, outputs=outputs)
    return BlackBox(model, outputs=outputs, device=device, dtype=dtype)


def _choose_method(model: nn.Module | Function, method: str | None) -> str:
    network = isinstance(model, nn.Module)
    method = method or ("gradient" if network else "occlusion")
    check_method(method)
    if not network and method != "occlusion":
        raise ConfigError(
            f"method {method!r}: follows gradients, which only a torch.nn.Module has; use the method 'occlusion'"
        )
    return method


def _choose_slices(model: nn.Module | Function, record: Record | None) -> int:
    if record is not None:
        return record.slices
    return (None if isinstance(model, nn.Module) else getattr(model, "slices", None)) or 3


def _check_sendable(network: Network) -> None:
    """Check that functions of the user's can be sent to workers; networks can, as they can be copied."""
    if isinstance(network, BlackBox):
        check_sendable(network.function, f"the function {network.name}")
    if network.outputs is not None:
        check_sendable(network.outputs, f"outputs={function_name(network.outputs)}")


def _batch_size(network: Network) -> int:
    """Return how many windows in one pass are fastest: on a CPU, in float32, few stay in its cache."""
    if isinstance(network, BlackBox):
        return 8
    return 2 if network.device.type == "cpu" and network.dtype == torch.float32 else 8


def _measurements(collected: list[Measured]) -> Measurements:
    places = np.concatenate([batch.places for batch in collected])
    rows = {key: np.concatenate([batch.rows[key] for batch in collected]) for key in collected[0].rows}
    return Measurements(volume=places[:, 0], position=places[:, 1:], **rows)


def _examples(collected: list[Measured]) -> Examples:
    places = np.concatenate([batch.places[: len(batch.images)] for batch in collected])
    return Examples(
        volume=places[:, 0],
        position=places[:, 1:],
        images=np.concatenate([batch.images for batch in collected]),
        saliency=np.concatenate([batch.saliency for batch in collected]),
    )


def _check_ranges(
    *, tolerance: float, precision: float, max_windows: int | None, batch: int | None, seed: int
) -> None:
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance = {tolerance}: must lie between 0 and 1")
    if not precision > 0:
        raise ConfigError(f"precision = {precision}: must be above 0")
    if max_windows is not None and max_windows < 1:
        raise ConfigError(f"max_windows = {max_windows}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must be at least 0")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch = {batch}: must be at least 1")


def _open_all(volume: VolumeLike | Sequence[VolumeLike]) -> list[Volume]:
    items: Sequence[VolumeLike] = volume if isinstance(volume, list | tuple) else [cast("VolumeLike", volume)]
    if not items:
        raise ConfigError("no volume was given; at least one is needed")
    return [open_volume(item) for item in items]


def _open_labels(
    labels: VolumeLike | Sequence[VolumeLike] | None, volumes: list[Volume]
) -> list[Volume] | None:
    if labels is None:
        return None
    opened = _open_all(labels)
    if len(opened) != len(volumes):
        raise ConfigError(
            f"{len(opened)} label volumes for {len(volumes)} volumes; one for each is needed, in the same order"
        )
    for label, volume in zip(opened, volumes, strict=True):
        if label.shape != volume.shape:
            raise VolumeError(
                f"{label.path}: labels of shape {label.shape} do not fit {volume.path} of shape {volume.shape}; "
                "the two must be equal"
            )
        if not np.issubdtype(label.dtype, np.integer):
            raise VolumeError(
                f"{label.path}: labels of type {label.dtype}; whole numbers are needed, one for each class"
            )
    return opened


def _choose_tile(model: nn.Module | Function, volumes: list[Volume]) -> tuple[int, int]:
    network = model if isinstance(model, nn.Module) else None
    fixed: tuple[int, int] | None = getattr(model, "tile", None) if network is None else input_size(network)
    if fixed is not None:
        return fixed
    planes = [volume.shape[1:] for volume in volumes]
    smallest = (min(plane[0] for plane in planes), min(plane[1] for plane in planes))
    return fit_tile(smallest, multiple=32 if network is None else input_multiple(network))


def _kernels(model: nn.Module | Function, record: Record | None) -> tuple[StemKernels, ...]:
    """Return the stems' kernels as ``neutralize`` recorded them, or as they stand in a network read from a file."""
    if record is None or not isinstance(model, nn.Module):
        return ()
    if record.kernels:
        return tuple(StemKernels(name, before, after) for name, before, after in record.kernels)
    weights = {
        name: cast("Tensor", model.get_submodule(name).weight).detach().float().cpu() for name in record.stems
    }
    arrays = {
        name: weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))).numpy()
        for name, weight in weights.items()
    }
    return tuple(StemKernels(name, array, array) for name, array in arrays.items())


def _describe(grid: WindowGrid) -> dict[str, Any]:
    volume = grid.volume
    return {
        "path": volume.path,
        "format": volume.format,
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "spacing": None if volume.spacing is None else list(volume.spacing),
        "unit": volume.unit,
        "fingerprint": fingerprint(volume),
        "intensity": [grid.scaling.low, grid.scaling.high],
        "fill": grid.scaling.fill,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
