"""Segment volumes of any size into labels or probabilities.

    labels = segment(model, "brain.nii.gz", out="labels.ome.zarr")

The volume is processed in blocks (``evenslice.inference.segmentation_blocks``), which go to a staging folder beside the
output, so that a run that was killed can be resumed. At the end the result is written in the format of the output, and the
staging folder removed. Besides windows and outputs, a process holds at most 1 GiB of stored voxels: slices that share their
chunks, which are thus decoded once.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ConfigError, OutputError, VolumeError, option, progress_bar
from evenslice.inference.compute import Compute
from evenslice.inference.prediction import HELD_BYTES, choose_tile, tell_rounding, try_network
from evenslice.inference.ready_networks import make_ready
from evenslice.inference.segmentation_blocks import (
    Job,
    begin,
    clear,
    describe_network,
    run_blocks,
    unfinished_folder,
    working_in,
)
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.volumes import (
    Destination,
    LabelValues,
    Reading,
    Volume,
    check_tile,
    open_volume,
    read_in_runs,
    reslice,
    write_volume,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn

    from evenslice.volumes import VolumeLike


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
) -> Volume:
    """Segment a volume slice by slice, and write the labels, or the probability of each class.

    The network itself is left unchanged; a frozen copy runs. An interrupted run continues from the last finished block
    when it is started again with the same arguments. Of a volume at an address, a sample of chunks tells whether it has
    changed meanwhile (see ``evenslice.volumes.fingerprint``), and a change elsewhere is not noticed: part of the result
    would then come from the old voxels, part from the new ones.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x). Slices in 0..1 are scaled as ``neutralize``
            recorded on it, else by the mean and std that its library states for pretrained weights, else not at all. Or any
            function with such an output (logits, no class numbers or probabilities),
            such as one from ``load_onnx``; see ``evenslice.inference.BlackBox`` for its input. An interrupted run
            recognizes a function by its name, by its code where Python has it, and by its attribute ``origin``, such as a
            digest; a change elsewhere is not noticed. Or either with its reading.
        volume: the volume to segment; one that was opened with another ``plane`` is segmented along that axis, and
            the output is written in the order of the file.
        out: the output file, OME-Zarr folder or its ``s3://`` address; the suffix gives the format, see
            ``evenslice.volumes.write.writer``. By default the labels are kept in memory alone, as an array that is opened.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function or the segmenter, else 3.
        probabilities: write the probability of each class, float32 (class, z, y, x), instead of labels: the softmax of the
            logits, or the sigmoid of a single one.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        scratch: where to create the staging folder; by default beside the output, or in the system's folder for
            temporary files if the output is remote, where it is needed with ``scheduler``.
        force: overwrite existing output, and discard an interrupted run with other options.
        reading: how the volume is read, by default as the segmenter says; its ``label_values``, integers of at least 0, are
            written, not its other options of labels.
        compute: where and how the network runs; workers of a scheduler must reach the volume and the staging folder by the
            same paths.

    Returns:
        The labels, opened; with ``probabilities``, those of the last class.

    Raises:
        VolumeError: the volume cannot be read, has too few slices, is constant or not finite, or changes meanwhile.
        ModelError: the network rejects the windows, or does not return a map of logits.
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
            segment(segmenter, volume, path, tile=tile, scratch=scratch, compute=compute)
            return open_volume(np.load(path))
    values = LabelValues(label_values=reading.label_values)
    if probabilities and reading.overlapping:
        raise ConfigError(
            f"{option('probabilities')}: classes that overlap have a sigmoid each (training.loss: dice_bce), and segment "
            "writes a softmax; write labels, or train with dice_ce"
        )
    volume = reading.open(volume)
    root = unfinished_folder(out, scratch, shared=compute.scheduler is not None)
    Destination.of(out).check(volume, force=force)
    network = make_ready(segmenter.network, slices, compute)
    tile = choose_tile(network, volume.shape[1:]) if tile is None else check_tile(tile)
    identity = describe_network(network)  # before its batch norms are folded
    classes = try_network(network, slices, tile, probabilities=probabilities)
    values.check(classes)
    values.check_written()
    job = Job(
        network=network,
        identity=identity,
        volume=volume,
        scaling=reading.fit_scaling(volume),
        slices=slices,
        step=reading.step,
        tile=tile,
        batch=compute.batch,
        classes=classes,
        values=None if probabilities else values.of_classes(classes),
        root=root,
    )
    tell_rounding(
        network,
        volume,
        job.scaling,
        slices=slices,
        step=reading.step,
        tile=tile,
        batch=compute.batch,
        progress=compute.progress,
    )
    with working_in(job.root, out):
        begin(job, force=force)
        run_blocks(job, compute.workers, compute.scheduler, compute.progress)
        job.confirm_input()
        _write(job, out, force=force, progress=compute.progress)
        clear(job.root)
    if job.values:
        return open_volume(out)
    return _open_channel(out, classes - 1, reslice(volume, "z").shape)


def _write(job: Job, out: str | os.PathLike[str], *, force: bool, progress: bool | None) -> None:
    """Write the output from the staging folder, in the order of the volume's file."""
    if job.values:
        channels = [open_volume(job.array)]
    else:
        channels = [open_volume(job.array, select={"c": number}) for number in range(job.classes)]
    held = HELD_BYTES // len(
        channels
    )  # along another axis, each slice shares its chunks with very many others
    turned = [reslice(replace(channel, plane=job.volume.plane), "z") for channel in channels]
    turned = [read_in_runs(channel, len(channel), held) for channel in turned]
    like, total, written = reslice(job.volume, "z"), job.volume.size * len(channels), 0
    with progress_bar("write", total, "voxels", show=progress) as advance:

        def report(count: int, expected: int) -> None:
            nonlocal written
            reached = total * count // expected  # the writer expects more voxels, those of resolution levels
            advance(reached - written)
            written = reached

        write_volume(turned[0] if job.values else turned, out, like=like, force=force, progress=report)


def _open_channel(path: str | os.PathLike[str], number: int, shape: tuple[int, int, int]) -> Volume:
    """Open a channel of the written file: NIfTI calls its axis time, NumPy and HDF5 do not name it."""
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
    raise OutputError(f"{path}: was written but cannot be read back; check the disk")
