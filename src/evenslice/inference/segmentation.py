"""Segment volumes of any size into labels or probabilities.

    labels = segment(model, "brain.nii.gz", out="labels.ome.zarr")

The work is done in blocks that any process can take and that a later run can resume, in a folder beside the output:

    .labels.tif.unfinished/
        .evenslice-lock       held while a process works on the output
        work/
            plan.json         what must not change until the end
            array.zarr        labels (z, y, x), or probabilities (class, z, y, x)

A block is a range of slices and, of very large planes, a part of each. Blocks share no chunk of the array, whose chunks
appear whole: a block that exists is done. Only folders with evenslice's marker are ever removed. At the end the result is
written in the format of the output, and the folder removed. Besides windows and outputs, a process holds at most 1 GiB of
stored voxels: slices that share their chunks, which are thus decoded once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import shutil
import stat
import time
from contextlib import closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice, product
from tempfile import TemporaryDirectory
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
from evenslice.inference.compute import Compute
from evenslice.inference.prediction import HELD_BYTES, Predictor
from evenslice.inference.ready_networks import BlackBox, ReadyNetwork, make_ready
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.networks import predicted_classes
from evenslice.volumes import (
    Destination,
    LabelValues,
    Reading,
    Volume,
    fingerprint,
    modified,
    open_volume,
    read_in_runs,
    write_volume,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evenslice.volumes import Scaling, VolumeLike

    Region = tuple[slice, slice, slice]


CHUNK = 1024  # largest side of a chunk of the array, which is one slice deep
LARGEST_REGION = 4 * CHUNK  # largest side of the part of a plane that is held at once
BLOCK_VOXELS = 2**20  # a full batch; little is lost with a block that is not finished
MOST_VOXELS = 2**41  # of a volume; the list of its blocks would be too long
BATCH_VOXELS = 2**23  # that wait to be written, at most
FEWEST_TASKS = 8  # and two for each worker: a few large ones would leave workers idle at the end
SEEN_LATE = 90.0  # seconds; NFS takes what it knows of a folder to be true for up to 60
LOOK_SECONDS = 2.0
WORK = "work"  # the folder in that for unfinished work


def unfinished_folder(out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None) -> Path:
    """Return the folder for unfinished work on an output, the same for each run.

    Args:
        out: the output.
        scratch: where the folder is to be; None for beside the output.

    Raises:
        ConfigError: the folder is to be at an address, or in the output itself.
    """
    target = Destination.of(out).location
    if scratch is None:
        return target.parent / f".{target.name}.unfinished"
    folder = local_path(scratch, ConfigError).absolute()
    if folder.resolve().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{option('scratch', scratch)}: lies in the output {out}, in whose place the result is to be; choose another folder"
        )
    digest = hashlib.sha256(os.fsencode(str(target))).hexdigest()[:8]
    return folder / f"evenslice-{target.name}-{digest}.unfinished"


@contextmanager
def working_in(root: Path, out: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from the output while the block runs, and remove what killed ones left beside it.

    If it is interrupted, a note on that says where finished work is; what holds no voxels is removed.

    Raises:
        OutputError: another process is at work there; or the folder cannot be made, or is not the user's.
    """
    busy = f"{out}: another process is writing it; wait until that ends, or choose another output"
    with reporting_write_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir()
        found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise OutputError(
            f"{root}: is not a folder of yours; remove it, or choose another one with {option('scratch')}"
        )
    try:
        with locked_folder(root, busy):
            target = Destination.of(out).location
            remove_leftovers(target.parent, [target.name])
            try:
                yield
            except KeyboardInterrupt as error:
                if _is_begun(root):
                    error.add_note(f"repeat the command to resume; what is finished is in {root}")
                raise
            finally:
                with suppress(OSError):  # of a disk that does not answer, who knows
                    if not _is_begun(root):
                        clear(root)
    finally:
        with suppress(OSError):  # it is kept if anything is left in it
            root.rmdir()


def plan_blocks(volume: Volume) -> list[Region]:
    """Return all blocks of a volume, grouped by the part of the plane; raise VolumeError if it is too large for that."""
    depth, height, width = volume.shape
    if volume.size > MOST_VOXELS:
        raise VolumeError(
            f"{volume.path}: claims {volume.size:,} voxels, too many at once; give a {option('region')}, or a coarser level"
        )
    deepest = max(1, BLOCK_VOXELS // (min(height, LARGEST_REGION) * min(width, LARGEST_REGION)))
    count = -(-depth // deepest)
    rows, columns = (
        [slice(start, min(start + LARGEST_REGION, length)) for start in range(0, length, LARGEST_REGION)]
        for length in (height, width)
    )
    # Parts that differ by at most one, so that workers finish at about the same time.
    parts = [slice(depth * part // count, depth * (part + 1) // count) for part in range(count)]
    return [(z, y, x) for y, x, z in product(rows, columns, parts)]


@dataclass(frozen=True)
class Job:
    """Everything that a block needs; each worker gets it once.

    Attributes:
        predictor: its network is ready to run.
        identity: what tells the network from others (``describe_network``).
        values: the voxel value of each class; None for probabilities.
        root: the folder for unfinished work.
        blocks: see ``plan_blocks``.
    """

    predictor: Predictor
    identity: list[str]
    volume: Volume
    scaling: Scaling
    classes: int
    values: tuple[int, ...] | None
    root: Path
    blocks: list[Region]

    @property
    def array(self) -> Path:
        """The array of labels (z, y, x), or probabilities (class, z, y, x), of the blocks done so far."""
        return self.root / WORK / "array.zarr"

    @property
    def description(self) -> Path:
        """The file that says what must not change."""
        return self.root / WORK / "plan.json"

    @property
    def sides(self) -> tuple[int, int, int]:
        """The size of a chunk of the array."""
        _, height, width = self.volume.shape
        return 1, min(height, CHUNK), min(width, CHUNK)

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
    def plan(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        stamp, content = modified(self.volume), fingerprint(self.volume)
        return {
            "network": self.identity,
            "engine": self.predictor.network.engine,
            "volume": [self.volume.path, list(self.volume.shape), self.volume.reading, content],
            # The fingerprint of a large volume does not cover all of it.
            "modified": stamp if content.startswith("sha256-partial:") else None,
            "scaling": [self.scaling.low, self.scaling.high, self.scaling.fill],
            "windows": [self.predictor.slices, self.predictor.step, *(self.predictor.tile or ())],
            "values": list(self.values) if self.values else [],
        }

    def confirm_input(self) -> None:
        """Check that the volume is still what the segmentation began with; if not, discard the segmentation.

        Raises:
            VolumeError: it has changed, or cannot be read any more.
        """
        volume, plan = copy(self.volume), self.plan  # opened anew
        if volume.location is None or (
            fingerprint(volume) == plan["volume"][-1] and plan["modified"] in (None, modified(volume))
        ):
            return
        clear(self.root)
        raise VolumeError(
            f"{self.volume.path}: has changed since its segmentation began, which is discarded; start it again"
        )


def describe_network(network: ReadyNetwork | BlackBox) -> list[str]:
    """Return what tells a network from others, so that a segmentation is resumed by the one that began it.

    Networks are known by their layers, settings and weights; functions by their names, their source, their attributes and
    what they enclose. A change elsewhere, as in a function that they call, is not noticed.

    Example:
        >>> def bright(windows):
        ...     return windows[:, :1] - 0.5
        >>> describe_network(BlackBox(bright))[1:3]
        ['None', "{'mean': [0.0], 'std': [1.0]}"]
    """
    if isinstance(network, BlackBox):
        origin = getattr(network.function, "origin", None)  # such as the digest of an ONNX file
        return [network.name, str(origin), str(network.scaling), _digest(network.function)]
    return [_digest(network.module), str(network.scaling), str(network.dtype)]


def _digest(value: Any) -> str:
    return hashlib.sha256("\n".join(_parts(value, {})).encode()).hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Yield what tells a value from others: numbers and text, layers with their settings and weights, sources of functions.

    Args:
        value: the value.
        seen: the objects that were looked at, as one may hold itself, by their ids, which are theirs as long as they live.
    """
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}"
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    if isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        return
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    yield f"{type(value).__module__} {type(value).__qualname__}"
    if isinstance(value, dict):
        kept = [item for item in value.items() if not str(item[0]).startswith("_") or _lasts(item[1])]
    elif isinstance(value, list | tuple | set | frozenset):
        kept = list(enumerate(value if isinstance(value, list | tuple) else sorted(value, key=repr)))
    elif isinstance(value, torch.nn.Module):
        yield value.extra_repr()
        kept = [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)]
        kept += value.named_children()
        kept.append(("settings", dict(vars(value))))
    elif callable(value):
        function = getattr(value, "__func__", value)  # of a method
        with suppress(OSError, TypeError):  # a builtin has no source
            yield inspect.getsource(function if inspect.isroutine(function) else type(function))
        # Of a partial function, and of any; a module, which is the __self__ of a builtin, has no state of its own.
        names = ("func", "args", "keywords", "__defaults__", "__kwdefaults__")
        kept = [(name, getattr(value, name, None)) for name in names]
        owner = getattr(value, "__self__", None)
        whole = callable(owner) or isinstance(owner, dict | np.ndarray | torch.Tensor)
        kept += [("state", _state(value)), ("of", owner if whole else _state(owner))]
        with suppress(ValueError, TypeError):  # an object, or a variable that is not set yet
            kept.append(("enclosed", inspect.getclosurevars(function).nonlocals))
    else:
        return
    for name, item in kept:
        yield str(name)
        yield from _parts(item, seen)


def _state(value: Any) -> Any:
    """Return the attributes of an object, with those in slots."""
    with suppress(TypeError):  # an object of C
        return None if inspect.ismodule(value) else object.__getstate__(value)  # not by a method of its class


def _lasts(value: Any) -> bool:
    """Return whether a private attribute stays as it is: a whole number may count the calls, and a dictionary keep them."""
    lasting = (float, complex, str, bytes, np.ndarray, np.generic, torch.Tensor)
    return isinstance(value, lasting) or callable(value)


def begin(job: Job, *, force: bool) -> None:
    """Create the staging folder, or check that what is in it belongs to this segmentation."""
    with needs_extra("volumes", "segmenting a volume"):
        import zarr
        from zarr.codecs import ZstdCodec

    plan = json_text(job.plan)
    with suppress(*UNREADABLE):  # as where a process was killed at its beginning
        if read_json(job.description) == json.loads(plan):
            return
    if _is_begun(job.root) and not force:
        raise OutputError(
            f"{job.root}: holds an unfinished segmentation by another network, of another volume or with other "
            f"options; discard it with {option('force')}, or choose another output"
        )
    clear(job.root)
    channels = [] if job.values else [job.classes]
    with reporting_write_errors(str(job.root)):
        job.array.parent.mkdir()
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
    """Segment all unfinished blocks, in this process or by workers."""
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
    until = time.monotonic() + SEEN_LATE
    while scheduler and time.monotonic() < until and not all(map(job.is_finished, waiting)):
        time.sleep(LOOK_SECONDS)


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
        with reporting_write_errors(str(job.root)):
            array[place] = voxels

    # While a GPU computes a batch, this process compresses and writes the one before; otherwise, both need the processor.
    gpu = job.predictor.network.device.type == "cuda"
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
    outputs = job.predictor.predict(
        job.volume,
        job.scaling,
        centres=[z for block in blocks for z in range(depth)[block[0]]],
        region=(y, x),
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


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def segment(
    model: nn.Module | Callable[..., Any] | Segmenter,
    volume: VolumeLike,
    out: str | os.PathLike[str] | None = None,
    *,
    slices: int | None = None,
    probabilities: bool = False,
    tile: tuple[int, int] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    force: bool = False,
    reading: Reading | None = None,
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> Any:
    """Segment a volume slice by slice, and write the labels, or the probability of each class.

    The network itself is left unchanged; a frozen copy runs. Call it again with the same arguments to continue an
    interrupted run after the last finished block. At an address, only a sample of chunks is checked for changes in
    between (see ``evenslice.volumes.fingerprint``): where others change, part of the result comes from the old
    voxels, part from the new ones.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x). Slices in 0..1 are scaled by its record,
            else by the mean and std that its library states for pretrained weights, else not at all. Or any function
            with such an output (logits, not class numbers or probabilities), such as one from ``load_onnx``; see
            ``evenslice.inference.BlackBox`` for its input. An interrupted run recognizes a function by its name, its
            Python code, what it encloses, its attributes (private whole numbers, tuples, lists and dicts may change),
            and among them ``origin``, such as a digest; other changes go unnoticed. Or either in a ``Segmenter``.
        volume: the volume to segment; one that was opened with another ``plane`` is segmented along that axis, and
            the output is written in the order of the file.
        out: the output file, or OME-Zarr folder; the suffix gives the format, see
            ``evenslice.volumes.write.writer``. By default the labels are an array in memory; give ``scratch`` to resume.
        slices: N, odd; by default from the network's record, the function or the segmenter, else 3.
        probabilities: write the probability of each class, float32 (class, z, y, x), instead of labels: the softmax of the
            logits, or the sigmoid of a single one.
        tile: size (y, x) of the in-plane tiles, see ``Predictor``.
        scratch: where to create the staging folder; by default beside the output.
        force: overwrite existing output, and discard an interrupted run with other options.
        reading: how to read the volume, by default the segmenter's. Of its options of labels, only ``label_values``
            count: integers of at least 0, written for the classes; of overlapping ones, that of the largest logit.
        compute: where and how the network runs; workers of a scheduler must reach the volume and the staging folder by the
            same paths.

    Returns:
        The labels, or with ``probabilities`` the probability of the last class: an opened volume, or without ``out``
        an array (z, y, x).

    Raises:
        VolumeError: the volume cannot be read, has too few slices, is constant or not finite, or changes meanwhile.
        ModelError: the network rejects the windows, or does not return a map of logits; or parts of it are random, as its
            file of weights lacks them.
        OutputError: the output exists, is an input, cannot be written, or is being written by another process.
        ConfigError: an option is out of range or has no effect, or the scheduler does not answer.
        EvensliceError: worker processes do not start, or one was killed.
        MissingExtraError: Zarr, a package that writes the output or, with a scheduler, Dask is not installed.

    Example: a network that finds bright voxels.
        >>> import numpy as np
        >>> import torch
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> image = np.zeros((4, 40, 40), np.uint8)
        >>> image[:, 10:20] = 200
        >>> labels = segment(network, image, reading=Reading(intensity=(0, 200)))
        >>> labels.shape, labels[2, ::10, 0].tolist()
        ((4, 40, 40), [0, 1, 0, 0])
    """
    segmenter = as_segmenter(model, slices, reading)
    segmenter.need_segmentation()
    slices, reading = segmenter.slices, segmenter.reading
    if out is None:
        if probabilities:
            raise ConfigError(f"{option('probabilities')}: are written to a file; give {option('out')}")
        with TemporaryDirectory() as folder:
            path = f"{folder}/labels.npy"
            segment(segmenter, volume, path, tile=tile, scratch=scratch, force=force, compute=compute)
            return np.load(path)
    values = LabelValues(label_values=reading.label_values)
    if probabilities and reading.overlapping:
        raise ConfigError(
            f"{option('probabilities')}: classes that overlap have a sigmoid each (training.loss: dice_bce), and segment "
            "writes a softmax; write labels, or train with dice_ce"
        )
    volume = reading.open(volume)
    root = unfinished_folder(out, scratch)
    Destination.of(out).check(volume, force=force)
    network = make_ready(segmenter.network, slices, compute)
    predictor = Predictor(network, slices, reading.step, tile, compute.batch).for_planes(volume.shape[1:])
    identity = describe_network(network)  # before it is converted
    classes = predictor.prepare(probabilities=probabilities)
    values.check(classes)
    values.check_written()
    scaling = reading.fit_scaling(volume)
    blocks = plan_blocks(volume)
    predictor = predictor.with_engine(compute, volume, scaling, len(volume))
    predictor.tell_rounding(volume, scaling, compute.progress)
    voxels = None if probabilities else values.of_classes(classes)
    job = Job(predictor, identity, volume, scaling, classes, voxels, root, blocks)
    with working_in(job.root, out):
        begin(job, force=force)
        run_blocks(job, compute.workers, compute.scheduler, compute.progress)
        job.confirm_input()
        _write(job, out, force=force, progress=compute.progress)
        clear(job.root)
    if job.values:
        return open_volume(out)
    return _open_channel(out, classes - 1, open_volume(volume, plane="z").shape)


def _write(job: Job, out: str | os.PathLike[str], *, force: bool, progress: bool | None) -> None:
    """Write the output from the staging folder, in the order of the volume's file."""
    if not all(map(job.is_finished, job.blocks)):
        raise OutputError(
            f"{job.root}: has lost blocks that were finished; repeat the command to segment them again"
        )
    selects = [None] if job.values else [{"c": number} for number in range(job.classes)]
    channels = [open_volume(job.array, select=select) for select in selects]
    held = HELD_BYTES // len(channels)  # along another axis, each slice shares its chunks with many others
    turned = [open_volume(replace(channel, plane=job.volume.plane), plane="z") for channel in channels]
    turned = [read_in_runs(channel, len(channel), held) for channel in turned]
    like, total, written = open_volume(job.volume, plane="z"), job.volume.size * len(channels), 0
    with progress_bar("write", total, "voxels", show=progress) as advance:

        def report(count: int, expected: int) -> None:
            nonlocal written
            reached = total * count // expected  # the writer expects more voxels, those of resolution levels
            advance(reached - written)
            written = reached

        write_volume(turned[0] if job.values else turned, out, like=like, force=force, progress=report)


def _open_channel(path: str | os.PathLike[str], number: int, shape: tuple[int, int, int]) -> Volume:
    """Open a channel of the written file: NIfTI calls its axis time, NumPy and HDF5 do not name it."""
    for axes, axis in ((None, "c"), (None, "t"), ("czyx", "c")):
        with suppress(ConfigError, VolumeError):
            channel = open_volume(path, axes=axes, select={axis: number})
            if channel.shape == shape:
                return channel
    raise OutputError(f"{path}: was written but cannot be read back; check the disk")
