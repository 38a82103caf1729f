"""Working through the blocks of a segmentation, in this process or on a cluster.

Consecutive blocks read each slice once. On a cluster, those whose slices are stored together go to one worker.
"""

from __future__ import annotations

import platform
from collections import Counter
from contextlib import closing
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import (
    ModelError,
    OutputError,
    map_ahead,
    map_as_finished,
    open_cluster,
    option,
    progress_bar,
    refuse_killed,
    reporting_write_errors,
)
from evenslice.inference.prediction import predict
from evenslice.inference.segmentation_job import check_file
from evenslice.networks import predicted_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import EllipsisType

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.segmentation_job import Job, Region

    Place = tuple[EllipsisType, int, slice, slice]

__all__ = ["run_blocks"]

BATCH_VOXELS = 2**23  # that wait to be written, at most
FEWEST_TASKS = 8  # and two for each worker: a few large ones would leave workers idle at the end


def run_blocks(job: Job, workers: int | None, scheduler: str | None, progress: bool | None) -> None:
    """Segment all unfinished blocks, in this process or on a cluster."""
    waiting = [block for block in job.blocks if not job.is_finished(block)]
    if not waiting:
        return
    total = len(job.blocks)
    with (
        open_cluster(workers, scheduler) as client,
        progress_bar("segment", total, "blocks", show=progress, done=total - len(waiting)) as advance,
    ):
        if client is None:
            for _ in _segment_blocks(waiting, job):
                advance(1)
            return
        tasks = _tasks(waiting, job, max(FEWEST_TASKS, 2 * len(client.nthreads())))
        shown = Counter[int]()  # finished blocks of tasks in progress

        def show(task: list[Region], finished: int) -> None:
            advance(finished - shown[id(task)])
            shown[id(task)] = finished

        def look(task: list[Region]) -> None:
            show(task, sum(job.note(block).exists() for block in task))

        for task, outcome in map_as_finished(_segment_task, tasks, client, common=job, meanwhile=look):
            if isinstance(outcome, Exception):
                refuse_killed(
                    outcome, "these blocks", ", and start the command again, which keeps what is finished"
                )
                raise outcome
            show(task, len(task))


def _tasks(blocks: Sequence[Region], job: Job, fewest: int) -> list[list[Region]]:
    """Group blocks into tasks for workers: as many slices as share their chunks, or fewer for there to be enough tasks.

    Windows reach into the next task. Since tasks meet in the middle of chunks, two of them decode each chunk, and not three.
    """
    stored, first = (job.volume.chunks or (1,))[0], job.volume.chunk_offset[0]
    slices = sum(z.stop - z.start for z, _, _ in blocks)
    pieces = -(-stored * fewest // slices)  # of those that share their chunks

    def number(block: Region) -> tuple[slice, slice, int]:
        z, y, x = block
        return y, x, (2 * pieces * (first + z.start) + stored) // (2 * stored)

    return [list(task) for _, task in groupby(blocks, key=number)]


def _segment_task(blocks: Sequence[Region], job: Job) -> None:
    """Segment blocks on a worker; another one may have finished some of them before it died.

    Raises:
        OutputError: the worker does not see the staging folder.
    """
    if not job.description.is_file():
        raise OutputError(
            f"{job.root}: is missing on the worker {platform.node()}; choose a folder that this machine and all workers "
            f"share with {option('scratch')}"
        )
    list(_segment_blocks([block for block in blocks if not job.is_finished(block)], job))


def _segment_blocks(blocks: Sequence[Region], job: Job) -> Iterator[Region]:
    """Segment blocks in turn and yield each when finished; consecutive blocks read each slice once."""
    import zarr

    # A chunk of zeros is stored too, so that a missing one is never taken for one of zeros.
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(job.array, mode="r+")

    def write(found: tuple[Place, NDArray[Any]]) -> None:
        place, voxels = found
        with reporting_write_errors(str(job.staging)):
            array[place] = voxels

    # While a GPU computes a batch, this process compresses and writes the one before; otherwise, both need the processor.
    gpu = job.network.device.type == "cuda"
    for (y, x), part in groupby(blocks, key=lambda block: block[1:]):
        members = list(part)
        ahead = max(1, BATCH_VOXELS // ((y.stop - y.start) * (x.stop - x.start))) if gpu else 0
        with closing(map_ahead(write, _slices(members, job), threads=1, ahead=ahead)) as written:
            for block in members:
                for _ in islice(written, block[0].stop - block[0].start):
                    pass
                check_file(job)
                with reporting_write_errors(str(job.staging)):
                    job.note(block).write_text(job.sizes(block), encoding="ascii")
                yield block


def _slices(blocks: Sequence[Region], job: Job) -> Iterator[tuple[Place, NDArray[Any]]]:
    """Yield the voxels of the slices of blocks with the same part of the plane, and their places in the array."""
    depth, (_, y, x) = len(job.volume), blocks[0]
    outputs = predict(
        job.network,
        job.volume,
        scaling=job.scaling,
        slices=job.slices,
        step=job.step,
        centres=[z for block in blocks for z in range(depth)[block[0]]],
        region=(y, x),
        tile=job.tile,
        batch=job.batch,
        convert=None if job.values is None else _classes,
    )
    for z, output in outputs:
        yield (..., z, y, x), _voxels(output, z, job)


def _classes(output: Tensor) -> Tensor:
    """Return the classes (n, y, x) of logits (n, classes, y, x) on the CPU; a GPU copies bytes, if these hold them."""
    classes = predicted_classes(output, dim=1)
    return (classes.byte() if output.shape[1] <= 256 else classes).cpu()


def _voxels(output: Tensor, z: int, job: Job) -> NDArray[Any]:
    """Convert the classes (y, x) of slice z to labels, or its logits (classes, y, x) to probabilities."""
    if job.values is None:
        output = torch.cat([-output, output]) / 2 if len(output) == 1 else output
        probabilities: NDArray[Any] = output.softmax(0).cpu().numpy()
        if np.isnan(probabilities.sum()):
            raise ModelError(
                f"the network returns infinity for slice {z} of {job.volume.path}, of which no probabilities follow; it has "
                "to return finite numbers, or write labels"
            )
        return probabilities
    labels: NDArray[Any] = np.asarray(job.values, job.dtype)[output.numpy()]
    return labels
