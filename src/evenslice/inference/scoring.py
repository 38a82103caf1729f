"""Score a network on whole labelled volumes.

    scores = evaluate_parts(network, parts, classes=2)
    scores.mean_dice

Volumes are predicted slice by slice; ``evenslice.inference.metrics`` compares predictions with labels.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import ConfigError, needs_extra, option, progress_bar
from evenslice.inference.metrics import (
    Scores,
    VolumeScores,
    confusion_matrix,
    nan_mean,
    object_scores,
    surface_scores,
)
from evenslice.inference.network_outputs import class_map
from evenslice.inference.prediction import SliceRuns, choose_tile, even_slices, predict
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.inference.stress_test import StressTest
from evenslice.neutralizing import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evenslice.inference.prediction import Network
    from evenslice.volumes import LabelledVolume

__all__ = ["LARGEST_SURFACE", "evaluate_parts", "score_parts"]

LARGEST_SURFACE = 2**26
"""Voxels of the largest volume whose surfaces are compared, which takes up to 64 bytes a voxel."""


def evaluate_parts(  # all but three arguments have defaults and names
    model: nn.Module,
    parts: Sequence[LabelledVolume],
    *,
    classes: int,
    step: int = 1,
    boundaries: bool = False,
    surfaces: bool = True,
    most_slices: int | None = None,
    stressed: int = 0,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = False,
) -> Scores:
    """Predict whole volumes slice by slice and compare them with their labels.

    The network itself is left unchanged; a frozen copy runs, in float32.

    Args:
        model: maps (batch, slices, y, x) to logits (batch, classes, y, x); one channel is enough for two classes. The
            record that ``neutralize`` left on it gives the number of slices, 3 without one, and their scaling.
        parts: volumes with their labels and scaling, at least one.
        classes: C, the number of classes, 2 or more; labels are 0..C-1.
        step: distance between neighbouring slices of a window.
        boundaries: also compare the objects whose boundaries are class 1.
        surfaces: also compare the surfaces of volumes of up to ``LARGEST_SURFACE`` voxels, whose labels and
            prediction are then held in memory.
        most_slices: evaluate at most this many slices, spread evenly over all volumes, plus one for each class that
            these appear to miss; not with ``surfaces``.
        stressed: disturb the windows of at most this many slices, spread evenly over all volumes, and compare the
            answers, see ``inference.stressing``; 0 for none. Not with ``most_slices``.
        seed: random seed of the noise of disturbed slices.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        progress: show progress on standard error: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read or predicted, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns another number of classes.
        ConfigError: an option is out of range.
        MissingExtraError: a package of the extra ``train`` is missing.

    Example: labels that say which voxels are bright, and a network that finds them.
        >>> import torch
        >>> from evenslice.volumes import ClassIndex, LabelledVolume, Scaling, open_volume
        >>> image = np.random.default_rng(0).random((4, 32, 32))
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = network.bias.requires_grad_(False).fill_(-0.5)
        >>> labels = open_volume((image > 0.5).astype(np.int64))
        >>> index = ClassIndex(np.array([2048, 2048]), ())
        >>> part = LabelledVolume("noise", open_volume(image), labels, Scaling(0, 1), index)
        >>> evaluate_parts(network, [part], classes=2, device="cpu").mean_dice
        1.0
    """
    if not parts:
        raise ConfigError("no volume to evaluate on; give at least one")
    if most_slices is not None and (most_slices < 1 or surfaces or stressed):
        raise ConfigError(
            f"{option('most_slices', most_slices)}: must be at least 1, and surfaces and disturbed slices need all slices"
        )
    record = record_of(model)
    slices = record.slices if record else 3
    network = ReadyNetwork(model, slices=slices, device=device)
    if most_slices is None:  # of whole volumes, which folded batch norms make faster
        network.prepare(slices, choose_tile(network, parts[0].volume.shape[1:]))
    test = StressTest(slices, classes, seed=seed) if stressed else None
    return score_parts(
        network,
        parts,
        slices=slices,
        step=step,
        classes=classes,
        centres=_choose_slices(parts, most_slices),
        boundaries=boundaries,
        surfaces=surfaces,
        test=test,
        stressed=stressed,
        progress=progress,
    )


def score_parts(  # noqa: PLR0913  # what is computed, without the defaults
    network: Network,
    parts: Sequence[LabelledVolume],
    *,
    slices: int,
    step: int,
    classes: int,
    centres: Sequence[Sequence[int]],
    boundaries: bool = False,
    surfaces: bool = True,
    test: StressTest | None = None,
    stressed: int | None = None,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    progress: bool | None = False,
) -> Scores:
    """Score a network that is ready to run; each slice is read once, and goes through it as often as it is disturbed.

    Args:
        network: a network or a function, ready to run.
        parts: the volumes with their labels.
        slices: N, odd.
        step: distance between neighbouring slices of a window.
        classes: C.
        centres: the slices of each volume to predict, ascending.
        boundaries: as for ``evaluate_parts``.
        surfaces: likewise.
        test: disturbs windows; None for no disturbance.
        stressed: the largest number of slices that it disturbs; None for all.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows per forward pass, see ``predict``; fewer from where memory runs out.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.
    """
    depths = [len(part.volume) for part in parts]
    compared = [surfaces and part.volume.size <= LARGEST_SURFACE for part in parts]
    _need_packages(surfaces=any(compared), boundaries=boundaries)
    chosen = [set(places) for places in even_slices(depths, stressed)] if test else [set[int]()] * len(parts)
    more = (len(test.ways) - 1) * sum(map(len, chosen)) if test else 0
    found = []
    with progress_bar("evaluate", sum(map(len, centres)) + more, "windows", show=progress) as advance:
        for index, part in enumerate(parts):
            outputs = predict(
                network,
                part.volume,
                scaling=part.scaling,
                slices=slices,
                step=step,
                centres=centres[index],
                tile=tile,
                batch=batch,
                shown=test.windows(index, chosen[index]) if test else None,
            )
            labels = SliceRuns(part.labels)
            if test:
                answers = test.watch(outputs, index, chosen[index], labels, advance)
            else:
                answers = _class_maps(outputs, classes, advance)
            found.append(
                _compare(answers, labels, part, classes, boundaries=boundaries, surfaces=compared[index])
            )
    return Scores(tuple(found), test.result() if test else None)


def _need_packages(*, surfaces: bool, boundaries: bool) -> None:
    """Raise MissingExtraError before the first slice is predicted if a package for the comparison is missing."""
    for name, needed, purpose in (
        ("monai", surfaces, "comparing surfaces"),
        ("skimage", boundaries, "comparing objects"),
    ):
        if needed:
            with needs_extra("train", purpose):
                import_module(name)


def _class_maps(
    outputs: Iterable[tuple[int, Tensor]], classes: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield z and the class map (y, x) of each slice."""
    for z, output in outputs:
        yield z, class_map(output, classes)
        advance(1)


def _choose_slices(parts: Sequence[LabelledVolume], most: int | None) -> list[list[int]]:
    """Choose evenly spaced slices of the volumes laid end to end; return them by volume, ascending.

    For each foreground class known only from other slices, the slice that appears to hold most of it is added.
    """
    depths = [len(part.volume) for part in parts]
    total, starts = sum(depths), np.cumsum([0, *depths[:-1]])
    chosen = {
        int(start) + place
        for start, places in zip(starts, even_slices(depths, most), strict=True)
        for place in places
    }
    for samples in zip(*(part.index.positions for part in parts), strict=True):
        slices = [
            start + positions // math.prod(part.volume.shape[1:])
            for part, start, positions in zip(parts, starts, samples, strict=True)
        ]
        held = np.bincount(np.concatenate(slices), minlength=total)
        if held.any() and not held[list(chosen)].any():
            chosen.add(int(held.argmax()))
    return [
        sorted(place - start for place in chosen if start <= place < start + depth)
        for start, depth in zip(starts.tolist(), depths, strict=True)
    ]


def _compare(
    answers: Iterable[tuple[int, NDArray[np.int64]]],
    reference: SliceRuns,
    part: LabelledVolume,
    classes: int,
    *,
    boundaries: bool,
    surfaces: bool,
) -> VolumeScores:
    """Compare the class maps of slices, each with its z, with those of the labels of a volume."""
    volume = part.volume
    spacing = volume.spacing or (1.0, 1.0, 1.0)
    kept = np.empty((2, *volume.shape) if surfaces else 0, np.min_scalar_type(classes - 1))
    confusion = np.zeros((classes, classes), np.int64)
    objects = []
    background = None if part.background is None else SliceRuns(part.background)
    for z, answer in answers:
        labels = reference[z]
        confusion += confusion_matrix(labels, answer, classes)
        # What is ignored is no object, but boundary, and has no surface but where it cuts one off.
        ignored = labels < 0
        truth, predicted = np.maximum(labels, 0), np.where(ignored, 0, answer)
        if boundaries:
            edges = (truth == 1) | ignored, (predicted == 1) | ignored
            objects.append(object_scores(*edges, background=None if background is None else background[z]))
        if surfaces:
            kept[:, z] = truth, predicted
    distances = np.full((classes, 3), np.nan)
    if surfaces:
        distances[1:] = [surface_scores(kept[0] == c, kept[1] == c, spacing) for c in range(1, classes)]
    return VolumeScores(
        name=part.name,
        confusion=confusion,
        hd95=distances[:, 0],
        surface_dice=distances[:, 1],
        surface_dice_3=distances[:, 2],
        objects=nan_mean(objects or [(np.nan,) * 3]),
        spacing=spacing,
        unit=volume.unit if volume.spacing else "voxel",
    )
