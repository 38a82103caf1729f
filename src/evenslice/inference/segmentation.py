"""From a volume of any size to a volume of labels or probabilities.

    labels = segment(model, "brain.nii.gz", out="labels.ome.zarr")

The volume is worked on in blocks: some slices of it, and of very large planes a part. What is done lies in a staging
folder beside the output, with a note for each finished block, so that a run that was killed goes on where it was. At the
end the staging folder is written out in the format asked for, and removed. In one process or on a Dask cluster, the same
function works on the same blocks; none shares a chunk of the staging folder with another.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import (
    ConfigError,
    OutputError,
    VolumeError,
    finished,
    json_text,
    needs_extra,
    open_cluster,
    option,
    progress_bar,
    staged_file,
    writing,
)
from evenslice.inference.prediction import READ_VOXELS, choose_tile, class_logits, predict
from evenslice.inference.ready_network import ReadyNetwork
from evenslice.networks import predicted_classes
from evenslice.neutralizing import record_of
from evenslice.volumes import (
    Volume,
    check_target,
    fingerprint,
    fit_scaling,
    is_remote,
    open_volume,
    write_channels,
    write_volume,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evenslice.volumes import Scaling

    Region = tuple[slice, slice, slice]

__all__ = ["segment"]

FORMAT = 1
CHUNK = 1024  # largest side of a chunk of the staging folder, which is one slice deep
LARGEST_REGION = 4 * CHUNK  # largest side of the part of a plane that is held at once
BLOCK_VOXELS = 2**20  # a full batch; few large blocks would leave workers idle at the end
FEWEST = 8  # blocks along z where each has to span slices that are stored as one


def segment(  # noqa: PLR0913  # all but three arguments have defaults and names
    model: nn.Module,
    volume: Volume | NDArray[Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    slices: int | None = None,
    step: int = 1,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    probabilities: bool = False,
    label_values: Sequence[int] | None = None,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool | None = None,
) -> Volume:
    """Segment a volume, slice by slice, and write the labels, or the probability of each class.

    The network itself is left as it is; a frozen copy runs. A run that was interrupted goes on from the last finished
    block when it is started again in the same way.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x). What ``neutralize`` recorded on it says how
            slices are scaled.
        volume: what to segment.
        out: the file, the OME-Zarr folder or its ``s3://`` address; its suffix says the format, see
            ``evenslice.volumes.write.writer``.
        slices: N, odd; by default as many as ``neutralize`` recorded, else 3.
        step: distance between the slices of a window.
        intensity: the voxel values that become 0 and 1; by default percentiles of the volume.
        fill: the voxel value that stands in for NaN and infinity.
        probabilities: write the probability of each class, float32 (class, z, y, x), in place of labels.
        label_values: what stands for each class in the labels, whole numbers of at least 0; by default 0, 1, 2 ...
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows in one pass of the network.
        device: "auto" (a GPU if there is one) or a PyTorch device name.
        dtype: "auto" (bfloat16 where the hardware has it), "bfloat16" or "float32".
        workers: processes to start on this machine; by default this one does all.
        scheduler: address of a Dask scheduler whose workers to use instead; they must see the volume and the staging
            folder under the same paths.
        scratch: folder for the staging folder; by default that of the output, and the system's folder for temporary
            files where the output is remote.
        force: replace what stands under the name of the output, and drop what an interrupted run with other options
            left.
        progress: show a progress bar on standard error; by default where that is a terminal.

    Returns:
        The written labels, opened; of probabilities, those of the last class.

    Raises:
        VolumeError: the volume cannot be read, has too few slices, is constant or not finite.
        ModelError: the network refuses the windows, or does not give a map of logits.
        OutputError: something stands under the name of the output, it is an input, or it cannot be written.
        ConfigError: an option out of range, or a scheduler that does not answer.

    Example: a network that finds what is bright.
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> image = np.zeros((4, 40, 40), np.uint8)
        >>> image[:, 10:20] = 200
        >>> labels = segment(network, image, Path(tempfile.mkdtemp()) / "labels.tif", intensity=(0, 200))
        >>> labels.shape, labels[2, ::10, 0].tolist()
        ((4, 40, 40), [0, 1, 0, 0])
    """
    volume = open_volume(volume)
    record = record_of(model)
    slices = slices or (record.slices if record else 3)
    network = ReadyNetwork(model, slices=slices, device=device, dtype=dtype)
    tile = tile or choose_tile(network, volume.shape[1:])
    classes = _count_classes(network, slices, tile)
    job = _Job(
        network=network,
        volume=volume,
        scaling=fit_scaling(volume, intensity=intensity, fill=fill),
        slices=slices,
        step=step,
        tile=tile,
        batch=batch,
        classes=classes,
        values=None if probabilities else _check_values(label_values, classes),
        staging=_staging_folder(out, scratch),
    )
    check_target(out, volume, force=force)
    _begin(job, force=force)
    _fill(job, workers, scheduler, progress)
    return _finish(job, out, force=force, progress=progress)


@dataclass(frozen=True)
class _Job:
    """What every block needs: it travels to each worker once."""

    network: ReadyNetwork
    volume: Volume
    scaling: Scaling
    slices: int
    step: int
    tile: tuple[int, int]
    batch: int | None
    classes: int
    values: tuple[int, ...] | None
    staging: Path

    @property
    def array(self) -> Path:
        """The labels (z, y, x), or the probabilities (class, z, y, x), as far as they are done."""
        return self.staging / "array.zarr"

    @property
    def notes(self) -> Path:
        """The folder of notes, an empty file for each finished block."""
        return self.staging / "finished"

    @property
    def plan(self) -> Path:
        """What the staging folder is the beginning of."""
        return self.staging / "plan.json"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32) if self.values is None else np.min_scalar_type(max(self.values))

    @cached_property
    def blocks(self) -> list[Region]:
        """The blocks, those of one part of the plane after another."""
        depth, height, width = self.volume.shape
        rows, columns = (_cut(length, LARGEST_REGION) for length in (height, width))
        area = min(height, LARGEST_REGION) * min(width, LARGEST_REGION)
        stored = (self.volume.chunks or (1,))[0]
        aligned = stored * area <= READ_VOXELS and stored * FEWEST <= depth
        parts = _divide(depth, max(1, BLOCK_VOXELS // area), stored if aligned else 1)
        return [(z, y, x) for y, x, z in product(rows, columns, parts)]

    def note(self, block: Region) -> Path:
        return self.notes / "-".join(f"{part.start}_{part.stop}" for part in block)

    def describe(self) -> dict[str, Any]:
        """Return all that the outcome depends on."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {
            "format": FORMAT,
            "network": [type(self.network.module).__name__, digest.hexdigest(), str(self.network.dtype)],
            "volume": [self.volume.path, fingerprint(self.volume)],
            "scaling": [self.scaling.low, self.scaling.high, self.scaling.fill],
            "windows": [self.slices, self.step, *self.tile],
            "values": self.values and list(self.values),
        }


def _cut(length: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, length)) for start in range(0, length, most)]


def _divide(length: int, most: int, unit: int) -> list[slice]:
    """Cut into parts of whole units that differ by no more than one: workers are then done at about the same time."""
    units = -(-length // unit)
    parts = -(-units // max(1, most // unit))
    ends = [min(length, units * part // parts * unit) for part in range(parts + 1)]
    return [slice(*ends[part : part + 2]) for part in range(parts)]


def _count_classes(network: ReadyNetwork, slices: int, tile: tuple[int, int]) -> int:
    """Run one blank window through the network and count the classes that it tells apart."""
    network.prepare(slices, tile)
    with torch.no_grad():
        output = class_logits(network, torch.zeros(1, slices, *tile, device=network.device))
    return max(output.shape[1], 2)


def _check_values(values: Sequence[int] | None, classes: int) -> tuple[int, ...]:
    if values is None:
        return tuple(range(classes))
    if len(values) != classes or len(set(values)) < classes or not 0 <= min(values) <= max(values) < 2**32:
        raise ConfigError(
            f"label_values {list(values)}: give a different whole number, 0 or more, for each of the {classes} classes"
        )
    return tuple(values)


def _staging_folder(out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None) -> Path:
    """Return where the work is kept until it is done: the same place each time."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", str(out).rstrip("/"))
    if scratch is None and not is_remote(out):
        return Path(out).absolute().parent / f".{Path(out).name}.unfinished"
    return Path(scratch or tempfile.gettempdir()).absolute() / f"evenslice-{name[-100:]}.unfinished"


def _begin(job: _Job, *, force: bool) -> None:
    """Make the staging folder, or check that the one that is there is the beginning of this."""
    with needs_extra("volumes", "keeping what is segmented"):
        import zarr

    plan = job.describe()
    if job.plan.exists():
        if json.loads(job.plan.read_text(encoding="utf-8")) == plan:
            return
        if not force:
            raise OutputError(
                f"{job.staging}: holds the beginning of a segmentation by another network, of another volume or with "
                f"other options; drop it with {option('force')}, or choose another name for the output"
            )
    shutil.rmtree(job.staging, ignore_errors=True)
    shape, chunks = job.volume.shape, [1, *(min(length, CHUNK) for length in job.volume.shape[1:])]
    channels = [] if job.values else [job.classes]
    with writing(str(job.staging)):
        job.notes.mkdir(parents=True)
        zarr.create_array(
            job.array,
            shape=(*channels, *shape),
            chunks=(*(1 for _ in channels), *chunks),
            dtype=job.dtype,
            dimension_names=["c", "z", "y", "x"][-3 - len(channels) :],
        )
        with staged_file(job.plan) as beside:
            beside.write_text(json_text(plan), encoding="utf-8")


def _fill(job: _Job, workers: int | None, scheduler: str | None, progress: bool | None) -> None:
    """Segment all blocks that are not finished."""
    done = {path.name for path in job.notes.iterdir()}
    waiting = [block for block in job.blocks if job.note(block).name not in done]
    if not waiting:
        return
    with (
        open_cluster(workers, scheduler) as client,
        progress_bar("segment", len(job.blocks), "blocks", show=progress) as advance,
    ):
        advance(len(job.blocks) - len(waiting))
        if client is None:
            for _ in _segment_blocks(waiting, job):
                advance(1)
            return
        for _, outcome in finished(_segment_block, waiting, client, common=job):
            if isinstance(outcome, Exception):
                raise outcome
            advance(1)


def _segment_block(block: Region, job: _Job) -> None:
    list(_segment_blocks([block], job))


def _segment_blocks(blocks: Sequence[Region], job: _Job) -> Iterator[Region]:
    """Segment blocks one after another and yield each that is finished; slices are read once where blocks follow."""
    import zarr

    array = zarr.open_array(job.array, mode="r+")
    for (y, x), part in groupby(blocks, key=lambda block: block[1:]):
        members = list(part)
        outputs = predict(
            job.network,
            job.volume,
            scaling=job.scaling,
            slices=job.slices,
            step=job.step,
            centres=[z for block in members for z in range(len(job.volume))[block[0]]],
            region=(y, x),
            tile=job.tile,
            batch=job.batch,
        )
        for block in members:
            for z, output in islice(outputs, block[0].stop - block[0].start):
                with writing(str(job.staging)):
                    array[..., z, y, x] = _voxels(output, job)
            with writing(str(job.staging)):
                job.note(block).touch()
            yield block


def _voxels(output: Tensor, job: _Job) -> NDArray[Any]:
    """Turn logits (classes, y, x) into labels (y, x) or probabilities (classes, y, x)."""
    if job.values is None:
        output = torch.cat([-output, output]) / 2 if len(output) == 1 else output
        probabilities: NDArray[Any] = output.softmax(0).cpu().numpy()
        return probabilities
    classes = predicted_classes(output, dim=0).cpu().numpy()
    labels: NDArray[Any] = np.asarray(job.values, job.dtype)[classes]
    return labels


def _finish(job: _Job, out: str | os.PathLike[str], *, force: bool, progress: bool | None) -> Volume:
    """Write the output from the staging folder, open it, and remove the folder."""
    total = job.volume.size * (1 if job.values else job.classes)
    with progress_bar("write", total, "voxels", show=progress) as advance:
        written = 0

        def report(count: int, _: int) -> None:
            nonlocal written
            advance(count - written)
            written = count

        if job.values:
            write_volume(
                open_volume(job.array), out, like=job.volume, labels=True, force=force, progress=report
            )
        else:
            channels = [open_volume(job.array, select={"c": number}) for number in range(job.classes)]
            write_channels(channels, out, like=job.volume, force=force, progress=report)
    shutil.rmtree(job.staging, ignore_errors=True)
    if job.values:
        return open_volume(out)
    return _open_channel(out, job.classes - 1, job.volume.shape)


def _open_channel(path: str | os.PathLike[str], number: int, shape: tuple[int, int, int]) -> Volume:
    """Open a channel of what was written: NIfTI calls their axis time, and NumPy and HDF5 name none."""
    ways: tuple[dict[str, Any], ...] = (
        {"select": {"c": number}},
        {"select": {"t": number}},
        {"select": {"c": number}, "axes": "czyx"},
    )
    for way in ways:
        with suppress(ConfigError, VolumeError):
            channel = open_volume(path, **way)
            if channel.shape == shape:
                return channel
    raise OutputError(f"{path}: was written and cannot be read again; check the disk")
