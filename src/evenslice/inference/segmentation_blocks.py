"""The work on one segmentation, in blocks that any process can take and that a later run can resume.

    .labels.tif.unfinished/
        .evenslice-lock       held while a process works on the output
        work/
            plan.json         what must not change until the end
            array.zarr        labels (z, y, x), or probabilities (class, z, y, x)

A block is a range of slices and, of very large planes, a part of each. Blocks share no chunk of the array, whose chunks
appear whole: a block that exists is done. Only folders with evenslice's marker are ever removed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    ModelError,
    OutputError,
    VolumeError,
    json_text,
    local_path,
    locked_folder,
    map_ahead,
    map_tasks,
    needs_extra,
    open_workers,
    option,
    progress_bar,
    read_json,
    remove_leftovers,
    reporting_write_errors,
    staged_file,
)
from evenslice.inference.prediction import predict
from evenslice.inference.ready_networks import BlackBox
from evenslice.networks import predicted_classes
from evenslice.volumes import Destination, fingerprint, modified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.prediction import Network
    from evenslice.volumes import Scaling, Volume

    Region = tuple[slice, slice, slice]


FORMAT = 6
CHUNK = 1024  # largest side of a chunk of the array, which is one slice deep
LARGEST_REGION = 4 * CHUNK  # largest side of the part of a plane that is held at once
BLOCK_VOXELS = 2**20  # a full batch; little is lost with a block that is not finished
MOST_BLOCKS = 2**21  # above which their list would be too long
BATCH_VOXELS = 2**23  # that wait to be written, at most
FEWEST_TASKS = 8  # and two for each worker: a few large ones would leave workers idle at the end
LONGEST_NAME = 200  # bytes of the name of an output, of which a file system allows 255
SEEN_LATE = 90.0  # seconds; NFS takes what it knows of a folder to be true for up to 60
LOOK_SECONDS = 2.0
WORK = "work"  # the folder in that for unfinished work
DEEPEST = 12  # levels of a setting that are looked at


def unfinished_folder(
    out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None, *, shared: bool = False
) -> Path:
    """Return the folder for unfinished work on an output, the same for each run.

    Args:
        out: the output.
        scratch: where the folder is to be; None for beside the output, or the system's folder for temporary files.
        shared: whether other machines work in it.

    Raises:
        ConfigError: other machines would not see the folder, or it is to be at an address, or in the output itself.
    """
    target = Destination.of(out).location
    digest = hashlib.sha256(os.fsencode(str(target))).hexdigest()[:8]
    if scratch is None and isinstance(target, Path):
        whole = os.fsencode(target.name)
        short = whole if len(whole) <= LONGEST_NAME else whole[:150] + f"-{digest}".encode()
        return target.parent / f".{os.fsdecode(short)}.unfinished"
    if scratch is None and shared:
        raise ConfigError(
            f"{out}: is an address, beside which workers cannot keep unfinished work; with {option('scheduler')}, choose "
            f"a folder that this machine and all workers share with {option('scratch')}"
        )
    folder = local_path(tempfile.gettempdir() if scratch is None else scratch, ConfigError).absolute()
    if isinstance(target, Path) and folder.resolve().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{option('scratch', scratch)}: lies in the output {out}, in whose place the result is to be; choose another folder"
        )
    name = re.sub(r"[^A-Za-z0-9._]+", "-", str(target))[-100:]
    return folder / f"evenslice-{name}-{digest}.unfinished"


@contextmanager
def working_in(root: Path, out: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from the output while the block runs, and remove what killed ones left beside it.

    Raises:
        OutputError: another process is at work there; or the folder cannot be made, or is not the user's.
    """
    busy = f"{out}: another process is writing it; wait until that ends, or choose another output"
    with reporting_write_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir()
        try:
            found = root.lstat()
        except FileNotFoundError:  # the other process has just ended and removed it
            raise OutputError(busy) from None
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise OutputError(
            f"{root}: is not a folder of yours; remove it, or choose another one with {option('scratch')}"
        )
    try:
        with locked_folder(root, busy):
            target = Destination.of(out).location
            if isinstance(target, Path):
                remove_leftovers(target.parent, [target.name])
            yield
    finally:
        with suppress(OSError):  # it is kept if anything is left in it
            root.rmdir()


@dataclass(frozen=True)
class Job:
    """Everything that a block needs; each worker gets it once.

    Attributes:
        network: ready to run: its batch norms may be folded, which rounds a little differently on each device.
        identity: what tells the network from others, as found before that (``describe_network``).
        values: the voxel value of each class; None for probabilities.
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
    root: Path

    @property
    def staging(self) -> Path:
        """The folder of this segmentation."""
        return self.root / WORK

    @property
    def array(self) -> Path:
        """The array of labels (z, y, x), or probabilities (class, z, y, x), of the blocks done so far."""
        return self.staging / "array.zarr"

    @property
    def description(self) -> Path:
        """The file that says what must not change."""
        return self.staging / "plan.json"

    @property
    def sides(self) -> tuple[int, int, int]:
        """The size of a chunk of the array."""
        _, height, width = self.volume.shape
        return 1, min(height, CHUNK), min(width, CHUNK)

    @cached_property
    def blocks(self) -> list[Region]:
        """All blocks, grouped by the part of the plane."""
        depth, height, width = self.volume.shape
        deepest = max(1, BLOCK_VOXELS // (min(height, LARGEST_REGION) * min(width, LARGEST_REGION)))
        count = -(-depth // deepest)
        total = count * -(-height // LARGEST_REGION) * -(-width // LARGEST_REGION)
        if total > MOST_BLOCKS:
            raise VolumeError(
                f"{self.volume.path}: claims {self.volume.size:,} voxels, which are {total:,} blocks, and at most "
                f"{MOST_BLOCKS:,} can be segmented at once; give a part ({option('region')}), or a coarser level"
            )
        rows, columns = (
            [slice(start, min(start + LARGEST_REGION, length)) for start in range(0, length, LARGEST_REGION)]
            for length in (height, width)
        )
        # Parts that differ by at most one, so that workers finish at about the same time.
        parts = [slice(depth * part // count, depth * (part + 1) // count) for part in range(count)]
        return [(z, y, x) for y, x, z in product(rows, columns, parts)]

    def chunks(self, block: Region) -> Iterator[str]:
        """Yield the files with the voxels of a block."""
        channels = [] if self.values else [range(self.classes)]
        ranges = (
            range(part.start // side, -(-part.stop // side))
            for part, side in zip(block, self.sides, strict=True)
        )
        for index in product(*channels, *ranges):
            yield "/".join((str(self.array), "c", *map(str, index)))

    def is_finished(self, block: Region) -> bool:
        """Return whether all files of a block are there; one that a machine lost with its power may be empty."""
        try:
            return all(os.stat(chunk).st_size for chunk in self.chunks(block))  # noqa: PTH116  # very many
        except OSError:
            return False

    @cached_property
    def stamp(self) -> str | None:
        """When the input was last modified, as found before it was fingerprinted."""
        return modified(self.volume)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        stamp, content = self.stamp, fingerprint(self.volume)
        return {
            "format": FORMAT,
            "network": self.identity,
            "volume": [self.volume.path, list(self.volume.shape), self.volume.reading, content],
            # The fingerprint of a large volume does not cover all of it.
            "modified": stamp if content.startswith("sha256-partial:") else None,
            "scaling": [self.scaling.low, self.scaling.high, self.scaling.fill],
            "windows": [self.slices, self.step, *self.tile],
            "values": list(self.values) if self.values else [],
        }

    def is_unchanged(self, volume: Volume) -> bool:
        """Return whether the voxels are what they were."""
        planned = self.plan["modified"]
        return fingerprint(volume) == self.plan["volume"][-1] and planned in (None, modified(volume))

    def check_file(self) -> None:
        """Check, before voxels are kept, that the one file that they come from has not been modified.

        Raises:
            VolumeError: it has other content than at the beginning.
        """
        volume, place = self.volume, self.volume.location
        in_one_file = volume.files is None and not isinstance(place, str | None) and place.is_file()
        if in_one_file and modified(volume) != self.stamp and not self.is_unchanged(volume):
            raise VolumeError(
                f"{volume.path}: has changed while it was segmented; put it back, or start again"
            )

    def confirm_input(self) -> None:
        """Check that the volume is still what the segmentation began with; if not, discard the segmentation.

        Raises:
            VolumeError: it has changed, or cannot be read any more.
        """
        if self.volume.location is not None and not self.is_unchanged(copy(self.volume)):  # opened anew
            clear(self.root)
            raise VolumeError(
                f"{self.volume.path}: has changed since its segmentation began, which is discarded; start it again"
            )


def describe_network(network: Network) -> list[str]:
    """Return what tells a network from others, so that a segmentation is resumed by the one that began it.

    Networks are known by their layers, settings and weights; functions by their names, their source and the plain values that
    they enclose. A change elsewhere, as in a function that they call, is not noticed.

    Example:
        >>> def bright(windows):
        ...     return windows[:, :1] - 0.5
        >>> describe_network(BlackBox(bright))[1:3]
        ['None', "{'mean': [0.0], 'std': [1.0]}"]
    """
    if isinstance(network, BlackBox):
        function = network.function
        origin = getattr(function, "origin", None)  # such as the digest of an ONNX file
        return [network.name, str(origin), str(network.scaling), _digest(_function_parts(function))]
    parts = [str(network.module)]
    for name, module in network.module.named_modules():
        parts += [name, type(module).__module__, _plain_values(vars(module))]
    tensors = [*network.module.named_parameters(), *network.module.named_buffers()]
    parts += [f"{name} {_plain_values({'': value})}" for name, value in tensors]
    return [_digest(parts), str(network.scaling), str(network.dtype)]


def _function_parts(function: Callable[..., Any], depth: int = 0) -> list[str]:
    """Return the source of a function, or of the class of an object, and the values that it keeps."""
    inner = getattr(function, "__func__", function)  # of a method
    named = inner if inspect.isroutine(inner) else type(inner)
    kept = [
        getattr(inner, "__dict__", {}),
        getattr(function, "__self__", None),
        getattr(inner, "__defaults__", None),
    ]
    parts = [_plain_values(values, depth) for values in kept]
    with suppress(OSError, TypeError):  # a builtin has no source
        parts.append(inspect.getsource(named))
    if inspect.isfunction(inner):
        with suppress(ValueError):  # a variable that is not set yet
            parts.append(_plain_values(inspect.getclosurevars(inner).nonlocals, depth))
    return parts


def _plain_values(values: Any, depth: int = 0) -> str:
    """Return what settings hold: numbers, text, arrays, functions, and lists of these."""
    if isinstance(values, torch.Tensor):
        raw = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        values = raw, values.dtype, tuple(values.shape)
    if isinstance(values, np.ndarray | np.generic):
        return f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"
    if values is None or isinstance(values, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(values)
    parts: list[str] = []
    if depth == DEEPEST:  # a value may hold itself
        pass
    elif isinstance(values, dict):
        kept = {name: item for name, item in values.items() if _is_setting(str(name), item)}
        parts = [f"{name}={_plain_values(item, depth + 1)}" for name, item in kept.items()]
    elif isinstance(values, list | tuple):
        parts = [_plain_values(item, depth + 1) for item in values]
    elif inspect.isroutine(values):
        parts = _function_parts(values, depth + 1)
    return f"{type(values).__qualname__} [{', '.join(parts)}]"


def _is_setting(name: str, value: Any) -> bool:
    """Return whether a result may depend on an attribute; a private whole number may count the calls."""
    return not name.startswith("_") or isinstance(
        value, float | complex | np.ndarray | np.generic | torch.Tensor
    )


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def begin(job: Job, *, force: bool) -> None:
    """Create the staging folder, or check that what is in it belongs to this segmentation."""
    with needs_extra("volumes", "segmenting a volume"):
        import zarr
        from zarr.codecs import ZstdCodec

    plan = json_text(job.plan)
    try:
        if read_json(job.description) == json.loads(plan):
            return
    except UNREADABLE:  # as where a process was killed at its beginning
        pass
    if _is_begun(job.root) and not force:
        raise OutputError(
            f"{job.root}: holds an unfinished segmentation by another network, of another volume or with other "
            f"options; discard it with {option('force')}, or choose another output"
        )
    clear(job.root)
    channels = [] if job.values else [job.classes]
    with reporting_write_errors(str(job.staging)):
        job.staging.mkdir()
        zarr.create_array(
            job.array,
            shape=(*channels, *job.volume.shape),
            chunks=(*(1 for _ in channels), *job.sides),
            dtype=np.min_scalar_type(max(job.values)) if job.values else np.float32,
            compressors=ZstdCodec(checksum=True),
            dimension_names=["c", "z", "y", "x"][-3 - len(channels) :],
        )
        with staged_file(job.description) as beside:
            beside.write_text(plan, encoding="utf-8")


def _is_begun(root: Path) -> bool:
    """Return whether there are voxels in a folder for unfinished work."""
    return (root / WORK / "array.zarr" / "c").exists()


def clear(root: Path) -> None:
    """Remove unfinished work; what the user may have put beside it stays."""
    shutil.rmtree(root / WORK, ignore_errors=True)


def run_blocks(job: Job, workers: int | None, scheduler: str | None, progress: bool | None) -> None:
    """Segment all unfinished blocks, in this process or by workers, and check that they are there.

    Raises:
        OutputError: a block is not, as another program has removed it.
    """
    try:
        _run(job, workers, scheduler, progress)
    except BaseException:
        with suppress(OSError):  # of a disk that does not answer, who knows
            if not _is_begun(job.root):  # an option may have been refused
                clear(job.root)
        raise
    # What other machines finished may be seen late.
    until, missing = time.monotonic() + (SEEN_LATE if scheduler else 0), job.blocks
    while missing := [block for block in missing if not job.is_finished(block)]:
        if time.monotonic() >= until:
            raise OutputError(
                f"{job.staging}: another program has removed finished blocks; restart the segmentation to recompute them"
            )
        time.sleep(LOOK_SECONDS)


def _run(job: Job, workers: int | None, scheduler: str | None, progress: bool | None) -> None:
    waiting, total = [block for block in job.blocks if not job.is_finished(block)], len(job.blocks)
    if not waiting:
        return
    with (
        open_workers(workers, scheduler) as found,
        progress_bar("segment", total, "blocks", show=progress, done=total - len(waiting)) as advance,
    ):
        if found is None:
            for _ in _segment_blocks(waiting, job):
                advance(1)
            return
        tasks = _tasks(waiting, job, max(FEWEST_TASKS, found.capacity()))
        for task, outcome in map_tasks(_segment_task, tasks, found, common=job):
            if isinstance(outcome, Exception):
                raise outcome
            advance(len(task))


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

    def write(found: tuple[Any, NDArray[Any]]) -> None:
        place, voxels = found
        job.check_file()
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
                yield block


def _slices(blocks: Sequence[Region], job: Job) -> Iterator[tuple[Any, NDArray[Any]]]:
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
        convert=_classes if job.values else None,
    )
    values = np.array(job.values, np.min_scalar_type(max(job.values))) if job.values else None
    for z, output in outputs:
        yield (..., z, y, x), _probabilities(output, z, job) if values is None else values[output.numpy()]


def _classes(output: Tensor) -> Tensor:
    """Return the classes (n, y, x) of logits (n, classes, y, x) on the CPU; a GPU copies bytes, if these hold them."""
    classes = predicted_classes(output, dim=1)
    return (classes.byte() if output.shape[1] <= 256 else classes).cpu()


def _probabilities(output: Tensor, z: int, job: Job) -> NDArray[np.float32]:
    """Return the probabilities of the logits (classes, y, x) of slice z, of which a single one is for class 1."""
    output = torch.cat([-output, output]) / 2 if len(output) == 1 else output
    probabilities: NDArray[np.float32] = output.softmax(0).cpu().numpy()
    if np.isnan(probabilities.sum()):
        raise ModelError(
            f"the network returns infinity for slice {z} of {job.volume.path}, of which no probabilities follow; it has "
            "to return finite numbers, or write labels"
        )
    return probabilities
