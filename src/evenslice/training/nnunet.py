"""Data sets in nnU-Net's raw format: a folder with ``dataset.json``, images and labels.

The cases in ``imagesTr`` and ``labelsTr`` are for training, those in ``imagesTs`` that have labels in ``labelsTs`` for
testing.

    nnunet_options(Path("Dataset004_Hippocampus"))["train"][0]["image"]    "imagesTr/hippocampus_001_0000.nii.gz"

The format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ConfigError, read_bounded, reason

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["nnunet_options"]

LARGEST_DESCRIPTION = 2**24
MOST_CASES = 20_000

_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, OSError)


def nnunet_options(folder: Path, channel: int | None = None) -> dict[str, Any]:
    """Return the options of the section ``data`` that a data set in nnU-Net's raw format stands for.

    Args:
        folder: the folder of the data set.
        channel: which of several images of each case to read, from 0; None if there is only one.

    Returns:
        ``name``, ``train``, ``classes``, ``label_values``, and ``test`` and ``ignore_label`` if there are such; paths are
        relative to the folder.

    Raises:
        ConfigError: the folder is no such data set, lists cases by paths of their own, has several channels and none was
            chosen, training images without labels or labels without an image, too many cases, a single label, or labels
            that are regions.
    """
    described = _described(folder)
    ending = described.get("file_ending", ".nii.gz")  # not in data sets of nnU-Net's first version
    if not isinstance(ending, str) or not ending.startswith(".") or "/" in ending:
        raise ConfigError(
            f"{folder}: its dataset.json names the file_ending {ending!r:.40}; such as .nii.gz is right"
        )
    if "dataset" in described:
        raise ConfigError(
            f"{folder}: its dataset.json lists the images and labels of each case (dataset), which nnU-Net alone reads; name "
            "the same files in data.train and data.test"
        )
    number = _channel(folder, described, channel)
    values, ignored = _values(folder, described)
    train, unlabelled = _pairs(folder, "Tr", f"_{number:04d}{ending}", ending)
    found: dict[str, Any] = {
        "name": folder.name,
        "train": train,
        "classes": len(values),
        "label_values": values,
    }
    if not train:
        other = "" if channel is None else ", or another channel"
        raise ConfigError(
            f"{folder}: has no pair of imagesTr/CASE_{number:04d}{ending} and labelsTr/CASE{ending}; name the folder of "
            f"a data set in nnU-Net's raw format{other}"
        )
    if unlabelled:
        total = f"{len(unlabelled)} of {len(train) + len(unlabelled)} cases in imagesTr"
        named = "has no labels:" if len(unlabelled) == 1 else "have no labels, the first is"
        raise ConfigError(
            f"{folder}: {total} {named} {unlabelled[0]}; add labelsTr/{unlabelled[0]}{ending}, or take the image out"
        )
    cases = {pair["labels"] for pair in train}
    for labels in sorted((folder / "labelsTr").glob(f"*{ending}")):
        if not labels.name.startswith(".") and f"labelsTr/{labels.name}" not in cases:
            image = f"imagesTr/{labels.name.removesuffix(ending)}_{number:04d}{ending}"
            raise ConfigError(
                f"{folder}: labelsTr/{labels.name} has no image; add {image}, or take the labels out"
            )
    tests, _ = _pairs(folder, "Ts", f"_{number:04d}{ending}", ending)  # images without labels are no tests
    return found | ({"test": tests} if tests else {}) | ({} if ignored is None else {"ignore_label": ignored})


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads(read_bounded(folder / "dataset.json", LARGEST_DESCRIPTION))
        if not isinstance(described, dict):
            raise ValueError("it holds no object")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder}: has no dataset.json; name a data set's folder in nnU-Net's raw format"
        ) from error
    except _DAMAGED as error:
        raise ConfigError(
            f"{folder}: its dataset.json cannot be read ({reason(error)}); name the folder of a data set in nnU-Net's "
            "raw format"
        ) from error
    return described


def _channel(folder: Path, described: dict[str, Any], channel: int | None) -> int:
    names = _channel_names(described)
    if channel is None and len(names) > 1:
        listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names[:9]))
        more = ", ..." if len(names) > 9 else ""
        raise ConfigError(
            f"{folder}: has the channels {listed}{more}; choose one, as nnunet: {{path: {folder}, channel: 0}}"
        )
    if channel is not None and channel >= len(names):
        known = f"its channels are 0 to {len(names) - 1}" if len(names) > 1 else "its only channel is 0"
        raise ConfigError(f"{folder}: has no channel {channel}; {known}")
    return channel or 0


def _channel_names(described: dict[str, Any]) -> list[str]:
    """Return the names of the channels in the order of their numbers, by which their files are named, from 0."""
    names: Any = described.get("channel_names", described.get("modality"))
    if isinstance(names, dict):
        ordered = sorted(names, key=lambda key: int(key) if key.isdecimal() else len(names))
        names = [names[key] for key in ordered]
    return [str(name) for name in names] if isinstance(names, list) and names else [""]


def _values(folder: Path, described: dict[str, Any]) -> tuple[list[int], int | None]:
    """Return the value of each class, the background first, and that of voxels to ignore."""
    labels = described.get("labels")
    if not isinstance(labels, dict):
        raise ConfigError(
            f"{folder}: its dataset.json has no labels; nnU-Net's format has labels: {{NAME: VALUE}}"
        )
    if all(isinstance(value, str) for value in labels.values()):  # nnU-Net's first version: value to name
        labels = {name: int(value) if value.isdecimal() else value for value, name in labels.items()}
    labels = {name: value[0] if _is_single(value) else value for name, value in labels.items()}
    for name, value in labels.items():
        if type(value) is not int:
            raise ConfigError(
                f"{folder}: its label {name!r:.40} has the value {value!r:.40}; evenslice reads whole numbers, not "
                "regions; name the files in data.train and data.test, with data.label_values, in place of data.nnunet"
            )
    values = sorted(value for name, value in labels.items() if name != "ignore")
    if len(values) < 2:
        count = "1 label" if values else "no labels"
        raise ConfigError(
            f"{folder}: its dataset.json has {count}; evenslice needs a background and at least one other"
        )
    return values, labels.get("ignore")


def _is_single(value: Any) -> bool:
    """Return whether a label is a list of one value, which is no region."""
    return isinstance(value, list) and len(value) == 1


def _pairs(folder: Path, part: str, suffix: str, ending: str) -> tuple[list[dict[str, str]], list[str]]:
    """Return the images of a part with their labels, by name, and the cases that have none."""
    found = (folder / f"images{part}").glob(f"*{suffix}")
    # macOS puts a file ._NAME beside each that it copies to a disk of another kind.
    images = sorted(image for image in found if not image.name.startswith("."))
    if len(images) > MOST_CASES:
        raise ConfigError(
            f"{folder}: has {len(images):,} cases in images{part}, and at most {MOST_CASES:,} are read; move those to leave out "
            "to another folder"
        )
    cases, unlabelled = [], []
    for image in images:
        case = image.name.removesuffix(suffix)
        labels = f"labels{part}/{case}{ending}"
        if (folder / labels).exists():
            cases.append({"image": f"images{part}/{image.name}", "labels": labels})
        else:
            unlabelled.append(case)
    return cases, unlabelled
