"""Folds: each part of a data set is tested once, by networks that were trained on the others.

    for config in fold_data(data, window):      # one for each fold, with plain pairs for training and tests
        ...

A part is a pair of image and labels, or a block of its slices. Fold f of k tests on parts f, f + k, f + 2 k ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, EvensliceError, spelled_in_configuration
from evenslice.training import DataConfig
from evenslice.volumes import is_address, open_volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evenslice.studying.config import StudyData
    from evenslice.training import LabelledFiles, ModelConfig, VolumeFile

__all__ = ["cut_blocks", "fold_data"]

OPTIONS = ("training", "pairs", "folds", "blocks")
"""Options of a data set of a study that ``train`` does not have."""


@dataclass(frozen=True)
class _Part:
    """A pair, or a block of its slices; these are None for all of a pair of unknown length, which shares no file.

    ``files`` has the resolution level of each of its files.
    """

    number: int
    pair: LabelledFiles
    files: Mapping[tuple[Any, ...], int]
    slices: tuple[int, int] | None = None

    def near(self, other: _Part) -> bool:
        """Return whether both read the same image or the same labels."""
        return bool(self.files.keys() & other.files.keys())


def fold_data(data: StudyData, window: ModelConfig) -> list[DataConfig]:
    """Return the data set of each fold, or the one data set without folds.

    Training leaves out the slices of a file of the test that are within the reach of a window of a test slice, and one
    more; what remains of a block between two tests is left out if it is shorter than a window. Blocks need the number
    of slices: images without ``slices`` are opened for their shapes, but no voxel is read.

    Args:
        data: the data set.
        window: number and distance of the slices of a window.

    Raises:
        ConfigError: a block is shorter than a window, or a fold leaves nothing to train on.
        VolumeError: an image whose number of slices is needed cannot be opened.

    Example: two halves of a volume of 100 slices.
        >>> from evenslice.studying.config import StudyData
        >>> from evenslice.training import ModelConfig
        >>> pair = {"image": "image.tif", "labels": "labels.tif", "slices": [0, 100]}
        >>> data = StudyData.model_validate({"name": "em", "pairs": [pair], "blocks": 2, "folds": 2})
        >>> first, second = fold_data(data, ModelConfig(slices=3))
        >>> first.test[0].slices, first.train[0].slices
        ((0, 50), (52, 100))
        >>> second.test[0].slices, second.train[0].slices
        ((50, 100), (0, 48))
    """
    options = data.model_dump(exclude={*OPTIONS})
    if data.folds is None:
        return [DataConfig.model_validate(options)]
    parts = _cut(data, window)
    return [
        DataConfig.model_validate(options | _one_fold(data, parts, fold, window))
        for fold in range(data.folds)
    ]


def cut_blocks(start: int, stop: int, blocks: int) -> list[tuple[int, int]]:
    """Return contiguous blocks of slices whose lengths differ by at most one.

    Example:
        >>> cut_blocks(0, 10, 3)
        [(0, 3), (3, 6), (6, 10)]
    """
    ends = [start + (stop - start) * number // blocks for number in range(blocks + 1)]
    return list(pairwise(ends))


def _cut(data: StudyData, window: ModelConfig) -> list[_Part]:
    """Cut the pairs of a data set into the parts of which each is tested once."""
    whole = [_Part(number, pair, _files(data, pair)) for number, pair in enumerate(data.pairs)]
    _check_levels(data, whole)
    parts = []
    for part in whole:
        alone = data.blocks == 1 and not any(part.near(other) for other in whole if other is not part)
        if alone and part.pair.slices is None:
            parts.append(part)
            continue
        start, stop = part.pair.slices or (0, _length(data, part))
        for first, last in cut_blocks(start, stop, data.blocks):
            if last - first < window.extent:
                raise ConfigError(
                    f"datasets: {data.name!r}: blocks: {data.blocks}: cuts pairs[{part.number}] into blocks of "
                    f"{last - first} slices, fewer than the {window.extent} that a window spans; give fewer blocks"
                )
            parts.append(replace(part, slices=(first, last)))
    return parts


def _check_levels(data: StudyData, parts: Sequence[_Part]) -> None:
    """Check that pairs which share a file read it at one level: slices of different levels have different numbers."""
    for one, other in combinations(parts, 2):
        for file in one.files.keys() & other.files.keys():
            if one.files[file] != other.files[file]:
                raise ConfigError(
                    f"datasets: {data.name!r}: pairs[{one.number}] and pairs[{other.number}] read the same {file[0]} at the "
                    f"resolution levels {one.files[file]} and {other.files[file]}, whose slices cannot be told apart; read both "
                    "at one level"
                )


def _one_fold(
    data: StudyData, parts: Sequence[_Part], fold: int, window: ModelConfig
) -> dict[str, list[LabelledFiles]]:
    """Return the pairs for training and tests of one fold."""
    tested = parts[fold :: data.fold_count]
    train = []
    for number, pair in enumerate(data.pairs):
        kept = [part for part in parts if part.number == number and part not in tested]
        slices = {z for part in kept if part.slices for z in range(*part.slices)}
        if kept and not slices:
            train.append(pair)
            continue
        for part in tested:
            if kept and part.slices and part.near(kept[0]):
                first, last = part.slices
                slices -= set(range(first - window.guard - 1, last + window.guard + 1))
        train += [_slices(pair, *ends) for ends in _runs(slices) if ends[1] - ends[0] >= window.extent]
    if not train:
        raise ConfigError(
            f"datasets: {data.name!r}: fold {fold} has no slices to train on: those that are not tested are too near "
            "to the test, or fewer than a window spans; give more pairs or other blocks and folds"
        )
    return {
        "train": train,
        "test": [part.pair if part.slices is None else _slices(part.pair, *part.slices) for part in tested],
    }


def _runs(slices: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the contiguous ranges of a set of slices in order."""
    start = None
    for z in sorted(slices):
        start = z if start is None else start
        if z + 1 not in slices:
            yield start, z + 1
            start = None


def _slices(pair: LabelledFiles, start: int, stop: int) -> LabelledFiles:
    return pair.model_copy(update={"slices": (start, stop)})


def _files(data: StudyData, pair: LabelledFiles) -> dict[tuple[Any, ...], int]:
    """Return values that pairs share if they read the same image or the same labels, and at which level they do."""
    found = {}
    for kind, file in (("image", pair.image), ("labels", pair.labels)):
        path = _path(data, file)
        where = path.resolve() if isinstance(path, Path) else path
        found[(kind, where, *sorted(file.select.items()))] = file.level
    return found


def _path(data: StudyData, file: VolumeFile) -> Path | str:
    return file.path if is_address(file.path) else (data.root or Path()) / Path(file.path).expanduser()


def _length(data: StudyData, part: _Part) -> int:
    """Return the number of slices of the image of a pair; only its header is read."""
    image = part.pair.image
    options: dict[str, Any] = {"axes": image.axes, "select": image.select, "level": image.level}
    try:
        return len(open_volume(_path(data, image), plane=data.plane, **options))
    except EvensliceError as error:
        place = f"datasets: {data.name!r}: pairs[{part.number}].image"
        raise error.within(place, spelled_in_configuration) from error
