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
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, OutputError, VolumeError, option, progress_bar, whole_number
from evenslice.inference.network_identity import describe_network
from evenslice.inference.prediction import HELD_BYTES, choose_tile, tell_rounding, try_network
from evenslice.inference.ready_networks import make_ready
from evenslice.inference.segmentation_blocks import (
    Job,
    begin,
    clear,
    run_blocks,
    unfinished_folder,
    working_in,
)
from evenslice.networks import with_gradients
from evenslice.volumes import (
    LabelValues,
    Volume,
    check_destination,
    check_tile,
    fit_scaling,
    open_complete,
    open_filled,
    open_volume,
    read_in_runs,
    reslice,
    write_channels,
    write_volume,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from torch import nn

    from evenslice.volumes import VolumeLike

__all__ = ["segment"]


@with_gradients
def segment(  # noqa: PLR0913  # all but three arguments have defaults and names
    model: nn.Module | Callable[..., Any],
    volume: VolumeLike,
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
            digest; a change elsewhere is not noticed.
        volume: the volume to segment; one that was opened with another ``plane`` is segmented along that axis, and
            the output is written in the order of the file.
        out: the output file, OME-Zarr folder or its ``s3://`` address; the suffix gives the format, see
            ``evenslice.volumes.write.writer``.
        slices: N, odd; by default as recorded by ``neutralize`` or stated by the function, else 3.
        step: distance between the slices of a window.
        intensity: the voxel values that become 0 and 1; by default percentiles of the volume.
        fill: the voxel value that replaces NaN and infinity, and masked voxels of an array.
        probabilities: write the probability of each class, float32 (class, z, y, x), instead of labels: the softmax of the
            logits, or the sigmoid of a single one.
        label_values: the voxel value of each class in the labels, integers of at least 0; by default 0, 1, 2 ... Not with
            ``probabilities``.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows per forward pass, see ``predict``; fewer once memory runs out.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        dtype: "float32", which "auto" stands for; or "bfloat16" or "float16" (on a GPU), whose cost in labels is then said.
        workers: worker processes to start on this machine; by default everything runs in this process.
        scheduler: address of a Dask scheduler whose workers to use instead; they must reach the volume and the staging
            folder by the same paths.
        scratch: where to create the staging folder; by default beside the output, or in the system's folder for
            temporary files if the output is remote, where it is needed with ``scheduler``.
        force: overwrite existing output, and discard an interrupted run with other options.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Returns:
        The written labels, opened; with ``probabilities``, those of the last class.

    Raises:
        VolumeError: the volume cannot be read, has too few slices, is constant or not finite, or changes meanwhile.
        ModelError: the network rejects the windows, or does not return a map of logits.
        OutputError: the output exists, is an input, cannot be written, or is being written by another process.
        ConfigError: an option is out of range or has no effect, or the scheduler does not answer.
        EvensliceError: worker processes do not start, or one was killed.
        MissingExtraError: Zarr, a package that writes the output or, with a scheduler, Dask is not installed.

    Example: a network that finds bright voxels.
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> import torch
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> image = np.zeros((4, 40, 40), np.uint8)
        >>> image[:, 10:20] = 200
        >>> labels = segment(network, image, Path(tempfile.mkdtemp()) / "labels.tif", intensity=(0, 200))
        >>> labels.shape, labels[2, ::10, 0].tolist()
        ((4, 40, 40), [0, 1, 0, 0])
    """
    values = LabelValues(label_values=label_values)
    if probabilities and label_values is not None:
        raise ConfigError(
            f"{option('label_values')}: has no effect with {option('probabilities')}; omit one of the two"
        )
    step, volume = whole_number("step", step), open_filled(volume, fill)
    root = unfinished_folder(out, scratch, shared=scheduler is not None)
    check_destination(out, volume, force=force)
    sent = workers is not None or scheduler is not None
    network, slices = make_ready(model, slices, device=device, dtype=dtype, sent=sent)
    tile = choose_tile(network, volume.shape[1:]) if tile is None else check_tile(tile)
    identity = describe_network(network)  # before its batch norms are folded
    classes = try_network(network, slices, tile, probabilities=probabilities)
    values.check(classes)
    values.check_written()
    job = Job(
        network=network,
        identity=identity,
        volume=volume,
        scaling=fit_scaling(volume, intensity=intensity, fill=fill),
        slices=slices,
        step=step,
        tile=tile,
        batch=batch,
        classes=classes,
        values=None if probabilities else values.of_classes(classes),
        root=root,
    )
    tell_rounding(
        network, volume, job.scaling, slices=slices, step=step, tile=tile, batch=batch, progress=progress
    )
    with working_in(job.root, out):
        begin(job, force=force)
        run_blocks(job, workers, scheduler, progress)
        job.confirm_input()
        _write(job, out, force=force, progress=progress)
        clear(job.root)
    if job.values:
        return open_volume(out)
    return _open_channel(out, classes - 1, reslice(volume, "z").shape)


def _write(job: Job, out: str | os.PathLike[str], *, force: bool, progress: bool | None) -> None:
    """Write the output from the staging folder."""
    total = job.volume.size * (1 if job.values else job.classes)
    like = reslice(job.volume, "z")
    with progress_bar("write", total, "voxels", show=progress) as advance:
        written = 0

        def report(count: int, expected: int) -> None:
            nonlocal written
            reached = total * count // expected  # the writer expects more voxels, those of resolution levels
            advance(reached - written)
            written = reached

        if job.values:
            array = _in_order_of_file(open_complete(job.array), job)
            write_volume(array, out, like=like, labels=True, force=force, progress=report)
        else:
            channels = [
                _in_order_of_file(open_complete(job.array, select={"c": number}), job)
                for number in range(job.classes)
            ]
            write_channels(channels, out, like=like, force=force, progress=report)


def _in_order_of_file(array: Volume, job: Job) -> Volume:
    """Return an array of the staging folder, whose slices are those of the job, in the order of the volume's file.

    Along another axis, each slice shares its chunks with very many others.
    """
    volume = reslice(replace(array, plane=job.volume.plane), "z")
    return read_in_runs(volume, len(volume), HELD_BYTES // (1 if job.values else job.classes))


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
