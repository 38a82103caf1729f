"""The work on one segmentation, in blocks that any process can take and that a later run can resume.

A block is a range of slices and, of very large planes, a part of each. Blocks share no chunk of the staging folder,
where a note marks each finished block. It states the sizes of its chunks: a block whose chunks are not there is done
again. ``evenslice.inference.segmentation_run`` works through them.
"""

from __future__ import annotations

import os
import stat
import time
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    OutputError,
    VolumeError,
    mark_staging,
    needs_extra,
    option,
    reporting_write_errors,
)
from evenslice.inference.plans import plan_hash, same_plan, write_plan
from evenslice.inference.unfinished import clear, other_work
from evenslice.volumes import PARTIAL, cut_axis, fingerprint, modified

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.inference.prediction import Network
    from evenslice.volumes import Scaling, Volume

    Region = tuple[slice, slice, slice]

__all__ = ["SEEN_LATE", "Job", "begin", "check_blocks", "check_file", "confirm_input", "discard_unused"]

FORMAT = 4
CHUNK = 1024  # largest side of a chunk of the staging folder, which is one slice deep
LARGEST_REGION = 4 * CHUNK  # largest side of the part of a plane that is held at once
BLOCK_VOXELS = 2**20  # a full batch; little is lost with a block that is not finished
MOST_BLOCKS = 2**21  # above which their list, and the folder of their notes, would be too long

SEEN_LATE = 90.0  # seconds; NFS takes what it knows of a folder to be true for up to 60
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """Everything that a block needs; each worker gets it once.

    Attributes:
        network: ready to run: its batch norms may be folded, which rounds a little differently on each device.
        identity: what tells the network from others, as found before that (``describe_network``).
        values: the voxel value of each class; None for probabilities.
        output: of the network for one fixed window.
        root: the folder for unfinished work.
    """

    network: Network
    identity: list[str]
    volume: Volume
    scaling: Scaling
    slices: int
    step: int
    tile: tuple[int, int]
    batch: int | None
    classes: int
    values: tuple[int, ...] | None
    output: NDArray[np.float64]
    root: Path

    def __post_init__(self) -> None:
        if (blocks := _count_blocks(self.volume.shape)) > MOST_BLOCKS:
            raise VolumeError(
                f"{self.volume.path}: claims {self.volume.size:,} voxels, which are {blocks:,} blocks, and at most "
                f"{MOST_BLOCKS:,} can be segmented at once; give a part ({option('region')}), or a coarser level"
            )

    @cached_property
    def staging(self) -> Path:
        """The folder of this segmentation."""
        return self.root / plan_hash(self.plan)

    @property
    def array(self) -> Path:
        """The array of labels (z, y, x), or probabilities (class, z, y, x), of the blocks done so far."""
        return self.staging / "array.zarr"

    @property
    def notes(self) -> Path:
        """The folder with a file for each finished block."""
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
        rows, columns = (cut_axis(length, LARGEST_REGION) for length in (height, width))
        parts = _divide(depth, _deepest(height, width))
        return [(z, y, x) for y, x, z in product(rows, columns, parts)]

    def note(self, block: Region) -> Path:
        """Return the file that marks a block as finished."""
        return self.notes / "-".join(f"{part.start}_{part.stop}" for part in block)

    def chunks(self, block: Region) -> Iterator[str]:
        """Yield the files with the voxels of a block."""
        channels = [] if self.values else [range(self.classes)]
        sides = (1, *(min(length, CHUNK) for length in self.volume.shape[1:]))
        ranges = (
            range(part.start // side, -(-part.stop // side)) for part, side in zip(block, sides, strict=True)
        )
        for index in product(*channels, *ranges):
            yield "/".join((str(self.array), "c", *map(str, index)))

    def sizes(self, block: Region) -> str:
        """Return the sizes of these files, -1 of one that is missing, as the note of the block states them."""
        return " ".join(str(_size(chunk)) for chunk in self.chunks(block))

    def is_finished(self, block: Region) -> bool:
        """Return whether a block is marked as finished, and its files are those that it was marked with."""
        try:
            noted = self.note(block).read_text(encoding="ascii")
        except (OSError, ValueError):
            return False
        sizes = self.sizes(block)
        return noted == sizes and "-1" not in sizes.split()

    @cached_property
    def stamp(self) -> str | None:
        """When the input was last modified, as found before it was fingerprinted."""
        return modified(self.volume)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        stamp = self.stamp
        content = fingerprint(self.volume)
        return {
            "format": FORMAT,
            "network": self.identity,
            "volume": {
                "path": self.volume.path,
                "shape": list(self.volume.shape),
                "reading": self.volume.reading,
                "fingerprint": content,
                # The fingerprint of a large volume does not cover all of it.
                "modified": stamp if content.startswith(PARTIAL) else None,
            },
            "scaling": [self.scaling.low, self.scaling.high, self.scaling.fill],
            "windows": [self.slices, self.step, *self.tile],
            "values": self.values and list(self.values),
        }


def _count_blocks(shape: tuple[int, ...]) -> int:
    """Return the number of blocks of a volume, which may claim more than could be listed."""
    depth, height, width = shape
    return -(-depth // _deepest(height, width)) * -(-height // LARGEST_REGION) * -(-width // LARGEST_REGION)


def _deepest(height: int, width: int) -> int:
    """Return the largest number of slices of a block."""
    return max(1, BLOCK_VOXELS // (min(height, LARGEST_REGION) * min(width, LARGEST_REGION)))


def _divide(length: int, most: int) -> list[slice]:
    """Divide into parts that differ by at most one, so that workers finish at about the same time."""
    parts = -(-length // most)
    return [slice(length * part // parts, length * (part + 1) // parts) for part in range(parts)]


def _size(path: str) -> int:
    """Return the size of a regular file, or -1 if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def discard_unused(job: Job) -> None:
    """Remove the staging folder if no block of it is finished: an option may have been refused."""
    try:
        used = any(job.notes.iterdir())
    except FileNotFoundError:
        used = False
    except OSError:  # of a disk that does not answer, who knows
        used = True
    if not used:
        clear(job.root)


def begin(job: Job, *, force: bool) -> None:
    """Create the staging folder, or check that an existing one belongs to this segmentation."""
    with needs_extra("volumes", "segmenting a volume"):
        import zarr
        from zarr.codecs import ZstdCodec

    same = same_plan(job.description, job.plan, job.output, job.network)
    if other_work(job.root, job.staging if same else job.root) and not force:
        raise OutputError(
            f"{job.root}: holds an unfinished segmentation by another network, of another volume or with other "
            f"options; discard it with {option('force')}, or choose another output"
        )
    clear(job.root, keep=job.staging if same else None)
    if same:
        mark_staging(job.staging)  # version 0.2 did not
        return
    shape, chunks = job.volume.shape, [1, *(min(length, CHUNK) for length in job.volume.shape[1:])]
    channels = [] if job.values else [job.classes]
    with reporting_write_errors(str(job.staging)):
        job.staging.mkdir()
        mark_staging(job.staging)
        job.notes.mkdir()
        zarr.create_array(
            job.array,
            shape=(*channels, *shape),
            chunks=(*(1 for _ in channels), *chunks),
            dtype=job.dtype,
            compressors=ZstdCodec(checksum=True),
            dimension_names=["c", "z", "y", "x"][-3 - len(channels) :],
        )
        write_plan(job.description, job.plan, job.output)


def check_blocks(job: Job, patience: float) -> None:
    """Check that all blocks are there, as they were when they were finished.

    Args:
        job: the segmentation.
        patience: seconds to wait for those that are not, as they may be seen late if other machines finished them.

    Raises:
        OutputError: one is not.
    """
    until, missing = time.monotonic() + patience, job.blocks
    while missing := [block for block in missing if not job.is_finished(block)]:
        if time.monotonic() >= until:
            raise OutputError(
                f"{job.staging}: another program has changed or removed finished blocks; restart the segmentation "
                "to recompute them"
            )
        time.sleep(LOOK_SECONDS)


def confirm_input(job: Job) -> None:
    """Check that the volume is still what the segmentation began with; if not, discard the segmentation.

    Raises:
        VolumeError: it has changed, or cannot be read any more.
    """
    if job.volume.location is None:
        return
    if not _is_unchanged(job, fingerprint(copy(job.volume))):  # a copy opens the volume anew
        clear(job.root)
        raise VolumeError(
            f"{job.volume.path}: has changed since its segmentation began, which is discarded; start it again"
        )


def _is_unchanged(job: Job, now: str) -> bool:
    """Return whether the voxels are what they were, given their fingerprint."""
    planned = job.plan["volume"]
    same_files = planned["modified"] is None or modified(job.volume) == planned["modified"]
    return now == planned["fingerprint"] and same_files


def check_file(job: Job) -> None:
    """Check, before voxels are marked as finished, that the one file they come from has not been modified.

    Raises:
        VolumeError: it has other content than at the beginning.
    """
    volume = job.volume
    in_one_file = (
        volume.files is None and not isinstance(volume.location, str | None) and volume.location.is_file()
    )
    if in_one_file and modified(volume) != job.stamp and not _is_unchanged(job, fingerprint(volume)):
        raise VolumeError(f"{volume.path}: has changed while it was segmented; put it back, or start again")
