"""Streams the windows of volumes through attribution into the statistics of asymmetry.

Windows come in a stratified seeded random order, each with its mirror beside it, until every pair bias is known
precisely enough. What is kept grows with the number of windows, not with the size of the volume.
"""

from __future__ import annotations

import datetime as dt
import platform
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evenslice.asymmetry import Measurements, measure, next_look, pair_bias, precise_enough, summarize
from evenslice.attribution import Mirrored, Target, attribute, check_method, parse_target
from evenslice.errors import ConfigError, VolumeError
from evenslice.inference import ReadyNetwork
from evenslice.models import input_multiple, input_size, logits
from evenslice.neutralizing import record_of
from evenslice.results import Audit, Examples, StemKernels
from evenslice.volumes import Volume, fingerprint, open_volume
from evenslice.windows import WindowGrid, fit_scaling, fit_tile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evenslice.attribution import Attributed
    from evenslice.neutralizing import Record
    from evenslice.windows import Scaling

    VolumeLike = Volume | NDArray[Any] | str | os.PathLike[str]

__all__ = ["audit"]

EXAMPLES = 8
EXACT_EVERY = 8  # batches in the fast precision to one whose output is computed in float32 as well
SHARE_TOLERANCE = 0.002  # between the mean shares of the first windows in the fast precision and in float32
PACKAGES = (
    "evenslice",
    "torch",
    "numpy",
    "scipy",
    "captum",
    "timm",
    "segmentation-models-pytorch",
    "torchvision",
)


def audit(  # noqa: PLR0913  # the one entry to the main job: all but two arguments have defaults and names
    model: nn.Module,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    slices: int | None = None,
    step: int = 1,
    method: str = "gradient",
    target: Target = "predicted",
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    scalings: Sequence[Scaling] | None = None,
    tile: tuple[int, int] | None = None,
    tolerance: float = 0.05,
    precision: float = 0.01,
    max_windows: int | None = None,
    batch: int = 4,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool | None = None,
) -> Audit:
    """Measure how unequally a network treats the slices of its windows, and whose fault that is.

    The network itself is left as it is; a frozen copy runs.

    Args:
        model: maps (batch, slices, y, x) to logits. What ``neutralize`` recorded on it says how slices are scaled.
        volume: what to show it: a volume, an array (z, y, x), a path, or several of these; several volumes are
            treated as independent samples.
        slices: N, odd; by default as many as ``neutralize`` recorded, else 3.
        step: distance between neighbouring slices of a window.
        method: of attribution, one of ``evenslice.attribution.METHODS``.
        target: which class's logit is explained: "predicted", a class number, "labels" or "sum".
        labels: class maps of the volumes' shapes, for the target "labels".
        intensity: the voxel values that become 0 and 1; by default percentiles of each volume.
        fill: the voxel value that stands in for NaN and infinity.
        scalings: that of each volume, where it is known from training, instead of intensity and fill.
        tile: size (y, x) of the in-plane tile; by default up to 256, or the size the network insists on.
        tolerance: the largest absolute pair bias that still counts as symmetric, 0..1.
        precision: stop when the half-widths of the 95 % intervals of all pair biases are below this.
        max_windows: stop after so many windows in any case.
        batch: windows in one pass of the network.
        seed: of the order of the windows and of the methods that draw samples.
        device: "auto" (a GPU if there is one) or a PyTorch device name.
        dtype: "bfloat16", "float32" or "auto": bfloat16 where the hardware has it and where it gives the same mean
            shares on the first windows to 0.002 and the same pair biases to half the precision, else float32. With
            bfloat16, what a mirror does to the output is measured in float32 on one batch in eight.
        progress: show a progress bar on standard error; by default where that is a terminal.

    Raises:
        VolumeError: a volume cannot be read, has too few slices, is constant or not finite, or labels do not fit it.
        ModelError: the network refuses the windows, or its output does not suit the target.
        ConfigError: an option out of range.

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
    check_method(method)
    target = parse_target(str(target))
    if (labels is not None) != (target == "labels"):
        raise ConfigError(
            "label volumes and the target 'labels' go together: give --labels and --target labels, or neither"
        )
    record = record_of(model)
    if slices is None:
        slices = record.slices if record else 3
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
    stream = _Stream(grids, _open_labels(labels, volumes), batch, seed, max_windows)
    network = ReadyNetwork(model, slices=slices, device=device, dtype=dtype)
    network.check(slices, tile)

    explain = partial(attribute, method=method, target=target, seed=seed)
    if dtype == "auto":
        _keep_exact_enough(network, next(stream.batches(network.device)), explain, precision)
    collected, stopped = _collect(stream, network, explain, precision, progress)
    measurements = collected.measurements()
    kernels = _kernels(model, record)
    return Audit(
        name=record.strategy if record else "audit",
        statistics=summarize(measurements, tolerance),
        measurements=measurements,
        examples=collected.examples(),
        kernels=kernels,
        run={
            "slices": slices,
            "step": step,
            "strategy": record.strategy if record else None,
            "tie": record.tie if record else None,
            "method": method,
            "target": target,
            "precision": precision,
            "windows_available": stream.available,
            "stopped": stopped,
            "tile": list(tile),
            "batch": batch,
            "seed": seed,
            "device": str(network.device),
            "dtype": str(network.dtype).removeprefix("torch."),
            "scaling": {"mean": network.mean.flatten().tolist(), "std": network.std.flatten().tolist()},
            "model": {"class": type(model).__name__},
            "stems": [{"name": stem.name, "shape": list(stem.after.shape)} for stem in kernels],
            "volumes": [_describe(grid) for grid in grids],
            "command": None,
            "versions": _versions(),
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


@dataclass(frozen=True)
class _Batch:
    """Windows on their way through the network: (batch, 4) volume, z, y, x; (batch, N, y, x); (batch, y, x) or None."""

    places: NDArray[np.int64]
    windows: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class _Stream:
    """The windows of several volumes, taken from each in turn, in batches."""

    grids: list[WindowGrid]
    labels: list[Volume] | None
    batch: int
    seed: int
    max_windows: int | None

    @property
    def available(self) -> int:
        return sum(len(grid) for grid in self.grids)

    @property
    def limit(self) -> int:
        return min(self.available, self.max_windows or self.available)

    def batches(self, device: torch.device) -> Iterator[_Batch]:
        places = islice(self._places(), self.limit)
        while chunk := list(islice(places, self.batch)):
            windows = np.stack([self.grids[volume].read(*place) for volume, *place in chunk])
            yield _Batch(
                places=np.array(chunk, dtype=np.int64),
                windows=torch.from_numpy(windows).to(device, memory_format=torch.channels_last),
                labels=None if self.labels is None else self._read_labels(chunk, self.labels, device),
            )

    def _places(self) -> Iterator[tuple[int, int, int, int]]:
        visits = {index: grid.visits(seed=self.seed + index) for index, grid in enumerate(self.grids)}
        while visits:
            for index, visit in list(visits.items()):
                place = next(visit, None)
                if place is None:
                    del visits[index]
                else:
                    yield (index, *place)

    def _read_labels(
        self, chunk: list[tuple[int, int, int, int]], labels: list[Volume], device: torch.device
    ) -> Tensor:
        maps = [self.grids[volume].read_labels(labels[volume], *place) for volume, *place in chunk]
        return torch.from_numpy(np.stack(maps)).to(device)


@dataclass
class _Collected:
    """What an audit keeps of the windows it has seen: a row of numbers for each, the pictures of the first few."""

    places: list[NDArray[np.int64]] = field(default_factory=list)
    rows: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    saliency: list[NDArray[np.float32]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(places) for places in self.places)

    def add(
        self, batch: _Batch, found: Attributed, mirrored: Attributed, outputs: tuple[Tensor, Tensor] | None
    ) -> None:
        """Add a batch.

        Args:
            batch: the windows.
            found: their attribution.
            mirrored: that of their mirrors, in the order of the slices, not of the network's inputs.
            outputs: for windows and mirrors in float32; where None, what the mirror does to the output stays open.
        """
        self.places.append(batch.places)
        row = measure(
            found.attribution, mirrored.attribution.flip(1), *(outputs or (found.output, mirrored.output))
        )
        if outputs is None:
            row |= {
                name: np.full(len(batch.places), np.nan) for name in ("mirror_error", "mirror_disagreement")
            }
        self.rows.append(row)
        wanted = EXAMPLES - sum(len(images) for images in self.images)
        if wanted > 0:
            saliency = found.attribution[:wanted]
            total = saliency.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            self.images.append((batch.windows[:wanted] * 255).round().byte().cpu().numpy())
            self.saliency.append((saliency / total).cpu().numpy())

    def measurements(self) -> Measurements:
        places = np.concatenate(self.places)
        rows = {key: np.concatenate([row[key] for row in self.rows]) for key in self.rows[0]}
        return Measurements(volume=places[:, 0], position=places[:, 1:], **rows)

    def examples(self) -> Examples:
        places = np.concatenate(self.places)[:EXAMPLES]
        return Examples(
            volume=places[:, 0],
            position=places[:, 1:],
            images=np.concatenate(self.images),
            saliency=np.concatenate(self.saliency),
        )


def _keep_exact_enough(
    network: ReadyNetwork, batch: _Batch, explain: Callable[..., Attributed], precision: float
) -> None:
    """Go back to float32 where the fast precision gives other shares or pair biases on the first windows.

    It does on windows with large constant areas: there every rounding error of a layer is the same at all pixels, and
    does not average out.
    """
    fast = network.dtype
    if fast == torch.float32:
        return
    approximate = _shares(explain(network, batch.windows, labels=batch.labels))
    network.dtype = torch.float32
    exact = _shares(explain(network, batch.windows, labels=batch.labels))
    shares = np.abs((approximate - exact).mean(0))
    biases = np.abs((pair_bias(approximate) - pair_bias(exact)).mean(0))
    if shares.max() <= SHARE_TOLERANCE and biases.max(initial=0) <= precision / 2:
        network.dtype = fast


def _shares(found: Attributed) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = found.attribution.sum(dim=(2, 3)).double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # no attribution at all: NaN, which agrees with nothing
        sums /= sums.sum(1, keepdims=True)
    return sums


def _collect(
    stream: _Stream,
    network: ReadyNetwork,
    explain: Callable[..., Attributed],
    precision: float,
    progress: bool | None,
) -> tuple[_Collected, str]:
    """Run windows through the network until the pair biases are known precisely; say why it stopped."""
    collected = _Collected()
    mirrored_network = Mirrored(network)
    look = next_look(0)
    with _bar(stream.limit, show=progress) as advance:
        for number, batch in enumerate(stream.batches(network.device)):
            found = explain(network, batch.windows, labels=batch.labels)
            mirrored = explain(mirrored_network, batch.windows, labels=batch.labels)
            collected.add(batch, found, mirrored, _exact_outputs(network, batch, (found, mirrored), number))
            advance(len(batch.windows))
            if len(collected) >= look:
                if precise_enough(collected.measurements(), precision):
                    return collected, "precision reached"
                look = next_look(len(collected))
    return collected, "all windows used" if stream.limit == stream.available else "limit reached"


def _exact_outputs(
    network: ReadyNetwork, batch: _Batch, found: tuple[Attributed, Attributed], number: int
) -> tuple[Tensor, Tensor] | None:
    """Return the outputs for windows and mirrors in float32: those at hand, else of one batch in eight.

    What a mirror does to the output of a fair network is less than the rounding of the fast precision.
    """
    if network.dtype == torch.float32:
        return found[0].output, found[1].output
    if number % EXACT_EVERY:
        return None
    fast, network.dtype = network.dtype, torch.float32
    try:
        with torch.no_grad():
            windows = batch.windows
            return logits(network(windows)), logits(network(windows.flip(1)))
    finally:
        network.dtype = fast


@contextmanager
def _bar(total: int, *, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error where that is a terminal, or as asked for; yield what advances it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("audit"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows at most"),
        TimeElapsedColumn(),
    )
    hidden = not (console.is_terminal if show is None else show)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("audit", total=total)
        yield lambda count: progress.advance(task, count)


def _check_ranges(
    *, tolerance: float, precision: float, max_windows: int | None, batch: int, seed: int
) -> None:
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance = {tolerance}: must lie between 0 and 1")
    if not precision > 0:
        raise ConfigError(f"precision = {precision}: must be above 0")
    if max_windows is not None and max_windows < 1:
        raise ConfigError(f"max_windows = {max_windows}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must be at least 0")
    if batch < 1:
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


def _choose_tile(model: nn.Module, volumes: list[Volume]) -> tuple[int, int]:
    fixed = input_size(model)
    if fixed is not None:
        return fixed
    planes = [volume.shape[1:] for volume in volumes]
    smallest = (min(plane[0] for plane in planes), min(plane[1] for plane in planes))
    return fit_tile(smallest, multiple=input_multiple(model))


def _kernels(model: nn.Module, record: Record | None) -> tuple[StemKernels, ...]:
    """Return the stems' kernels as ``neutralize`` recorded them, or as they stand in a network read from a file."""
    if record is None:
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
