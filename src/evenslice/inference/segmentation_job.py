"""The work on one segmentation, in blocks that any process can take and that a later run can resume.

A block is a range of slices and, of very large planes, a part of each. Blocks share no chunk of the staging folder, where
an empty file marks each finished block.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import (
    OutputError,
    json_text,
    map_as_finished,
    needs_extra,
    open_cluster,
    option,
    progress_bar,
    reporting_write_errors,
    staged_file,
)
from evenslice.inference.prediction import READ_VOXELS, predict
from evenslice.networks import predicted_classes
from evenslice.volumes import fingerprint, is_address

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.ready_network import ReadyNetwork
    from evenslice.volumes import Scaling, Volume

    Region = tuple[slice, slice, slice]

__all__ = ["Job", "begin", "run_blocks", "staging_folder"]

FORMAT = 1
CHUNK = 1024  # largest side of a chunk of the staging folder, which is one slice deep
LARGEST_REGION = 4 * CHUNK  # largest side of the part of a plane that is held at once
BLOCK_VOXELS = 2**20  # a full batch; a few large blocks would leave workers idle at the end
FEWEST_BLOCKS = 8  # along z, for blocks to follow the slices that are stored together


@dataclass(frozen=True)
class Job:
    """Everything that a block needs; each worker gets it once."""

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
        """The array of labels (z, y, x), or probabilities (class, z, y, x), of the blocks done so far."""
        return self.staging / "array.zarr"

    @property
    def notes(self) -> Path:
        """The folder with an empty file for each finished block."""
        return self.staging / "finished"

    @property
    def description(self) -> Path:
        """The file that says which segmentation the staging folder belongs to."""
        return self.staging / "plan.json"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the array."""
        return np.dtype(np.float32) if self.values is None else np.min_scalar_type(max(self.values))

    @cached_property
    def blocks(self) -> list[Region]:
        """All blocks, grouped by the part of the plane."""
        depth, height, width = self.volume.shape
        rows, columns = (_cut(length, LARGEST_REGION) for length in (height, width))
        area = min(height, LARGEST_REGION) * min(width, LARGEST_REGION)
        stored = (self.volume.chunks or (1,))[0]
        aligned = stored * area <= READ_VOXELS and stored * FEWEST_BLOCKS <= depth
        parts = _divide(depth, max(1, BLOCK_VOXELS // area), stored if aligned else 1)
        return [(z, y, x) for y, x, z in product(rows, columns, parts)]

    def note(self, block: Region) -> Path:
        """Return the file that marks a block as finished."""
        return self.notes / "-".join(f"{part.start}_{part.stop}" for part in block)

    def describe(self) -> dict[str, Any]:
        """Return everything that the result depends on."""
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
    """Divide into parts of whole units that differ by at most one, so that workers finish at about the same time."""
    units = -(-length // unit)
    parts = -(-units // max(1, most // unit))
    ends = [min(length, units * part // parts * unit) for part in range(parts + 1)]
    return [slice(*ends[part : part + 2]) for part in range(parts)]


def staging_folder(out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None) -> Path:
    """Return the folder for unfinished work, the same for each run."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", str(out).rstrip("/"))
    if scratch is None and not is_address(str(out)):
        return Path(out).absolute().parent / f".{Path(out).name}.unfinished"
    return Path(scratch or tempfile.gettempdir()).absolute() / f"evenslice-{name[-100:]}.unfinished"


def begin(job: Job, *, force: bool) -> None:
    """Create the staging folder, or check that an existing one belongs to this segmentation."""
    with needs_extra("volumes", "segmenting a volume"):
        import zarr

    described = job.describe()
    if job.description.exists():
        if json.loads(job.description.read_text(encoding="utf-8")) == described:
            return
        if not force:
            raise OutputError(
                f"{job.staging}: holds an unfinished segmentation by another network, of another volume or with other "
                f"options; discard it with {option('force')}, or choose another output"
            )
    shutil.rmtree(job.staging, ignore_errors=True)
    shape, chunks = job.volume.shape, [1, *(min(length, CHUNK) for length in job.volume.shape[1:])]
    channels = [] if job.values else [job.classes]
    with reporting_write_errors(str(job.staging)):
        job.notes.mkdir(parents=True)
        zarr.create_array(
            job.array,
            shape=(*channels, *shape),
            chunks=(*(1 for _ in channels), *chunks),
            dtype=job.dtype,
            dimension_names=["c", "z", "y", "x"][-3 - len(channels) :],
        )
        with staged_file(job.description) as beside:
            beside.write_text(json_text(described), encoding="utf-8")


def run_blocks(job: Job, workers: int | None, scheduler: str | None, progress: bool | None) -> None:
    """Segment all unfinished blocks, in this process or on a cluster."""
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
        for _, outcome in map_as_finished(_segment_block, waiting, client, common=job):
            if isinstance(outcome, Exception):
                raise outcome
            advance(1)


def _segment_block(block: Region, job: Job) -> None:
    list(_segment_blocks([block], job))


def _segment_blocks(blocks: Sequence[Region], job: Job) -> Iterator[Region]:
    """Segment blocks in turn and yield each when finished; consecutive blocks read each slice once."""
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
                with reporting_write_errors(str(job.staging)):
                    array[..., z, y, x] = _voxels(output, job)
            with reporting_write_errors(str(job.staging)):
                job.note(block).touch()
            yield block


def _voxels(output: Tensor, job: Job) -> NDArray[Any]:
    """Convert logits (classes, y, x) to labels (y, x) or probabilities (classes, y, x)."""
    if job.values is None:
        output = torch.cat([-output, output]) / 2 if len(output) == 1 else output
        probabilities: NDArray[Any] = output.softmax(0).cpu().numpy()
        return probabilities
    classes = predicted_classes(output, dim=0).cpu().numpy()
    labels: NDArray[Any] = np.asarray(job.values, job.dtype)[classes]
    return labels
