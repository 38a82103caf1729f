"""The options of the data set of ``train``: which files and slices, and how their voxels are read; folders of nnU-Net."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from evenslice._core import UNREADABLE, ConfigError, Section, needs_extra, read_bounded, reason
from evenslice.volumes import LabelValues

with needs_extra("train", "a configuration"):
    from pydantic import (
        BeforeValidator,
        Field,
        ModelWrapValidatorHandler,
        SerializerFunctionWrapHandler,
        ValidationInfo,
        field_validator,
        model_serializer,
        model_validator,
    )

__all__ = ["DataConfig", "FileOption", "LabelledFiles", "VolumeFile", "config_folder", "nnunet_options"]

LARGEST_DESCRIPTION = 2**24

_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, OSError)


def config_folder(info: ValidationInfo) -> Path:
    """Return the folder to which paths in a configuration are relative; without a file, the working directory."""
    return Path((info.context or {}).get("folder", ""))


def _as_text(path: Any) -> str:
    if not isinstance(path, str | Path):
        raise ValueError("should be a path")  # pydantic adds the place
    return str(path)


FileOption = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
"""A file, kept as text since an address is not a path."""

_OF_LABELS = tuple(field.name for field in fields(LabelValues))


class _Place(Section):
    """Options of which the path alone is enough."""

    @model_validator(mode="wrap")
    @classmethod
    def _from_path(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return handler(value if isinstance(value, dict | cls) else {"path": value})


class VolumeFile(_Place):
    """A file that holds a volume; the path alone is enough."""

    path: FileOption
    """File, Zarr folder, or address."""
    axes: str | None = None
    """Names of the stored axes, such as xyz or tzyx."""
    select: dict[str, int] = Field(default={})
    """Index along other axes, such as {t: 0}."""
    level: int = Field(default=0, ge=0)
    """Resolution level of a multiscale image; 0 is the finest."""

    @model_serializer(mode="wrap")
    def _to_path(self, handler: SerializerFunctionWrapHandler) -> Any:
        values: dict[str, Any] = handler(self)
        only_path = (self.axes, self.select, self.level) == (None, {}, 0)
        return values["path"] if only_path else values


class LabelledFiles(Section):
    """An image and its labels, or some of their slices."""

    image: VolumeFile
    """Image: a path, or a section of path, axes, select and level."""
    labels: VolumeFile
    """Class of each voxel, in a file of the same shape."""
    slices: tuple[int, int] | None = None
    """First slice and one past the last, from 0; by default all slices."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size along z, y, x; by default as the image file states."""
    unit: str | None = None
    """Unit of the spacing, such as nm, um or mm."""

    @field_validator("slices")
    @classmethod
    def _ascending(cls, slices: tuple[int, int] | None) -> tuple[int, int] | None:
        if slices is not None and not 0 <= slices[0] < slices[1]:
            raise ValueError("give the first slice and the one after the last, with 0 <= first < last")
        return slices


class NnunetFolder(_Place):
    """A data set in nnU-Net's raw format; the path alone is enough if there is one channel."""

    path: Path
    """Folder with dataset.json, imagesTr and labelsTr."""
    channel: int | None = Field(default=None, ge=0)
    """Which image of each case to read, counted from 0."""


class _NnunetOptions(Section):
    """Reads the options that such a folder stands for, so that errors have its place."""

    root: Path = Path()
    nnunet: NnunetFolder

    @field_validator("nnunet")
    @classmethod
    def _options(cls, given: NnunetFolder, info: ValidationInfo) -> Any:
        root = config_folder(info) / info.data.get("root", Path()).expanduser()
        folder = (root / given.path.expanduser()).absolute()
        try:
            return {**nnunet_options(folder, given.channel), "root": folder}
        except ConfigError as error:
            raise ValueError(str(error)) from error


class DataConfig(Section):
    """A data set: pairs of images and labels for training, validation and testing."""

    name: str = Field(default="data", min_length=1)
    """Name of the data set in results; by default that of nnU-Net's folder, else data."""
    root: Path | None = None
    """Folder that paths are relative to; by default this file's."""
    nnunet: NnunetFolder | None = None
    """The folder of a data set in nnU-Net's raw format, instead of pairs for train and test: delete these two, which
    then come from its files (test if there are labelsTs), as do name, classes, label_values and ignore_label, unless
    given here; the last three do not with instances. In a study with folds, the cases of imagesTr are its pairs."""
    train: tuple[LabelledFiles, ...]
    """Pairs of image and labels for training."""
    validation: tuple[LabelledFiles, ...] = ()
    """Pairs for validation; without any, part of the training data can be held out."""
    test: tuple[LabelledFiles, ...] = ()
    """Pairs for testing the final network."""
    validation_fraction: float = Field(default=0, ge=0, le=0.5)
    """Fraction of the training data to hold out if there are no validation pairs: the last training pairs, or the
    last slices of each if there are fewer than four. With 0, all of it is used for training, and nothing for
    validation."""
    classes: int = Field(default=2, ge=2)
    """Number of classes, including background; by default as many as label_values or, with nnunet, as its labels,
    else 2."""
    label_values: tuple[int, ...] | None = None
    """Voxel value of each class in the label files, such as [0, 255]; by default 0, 1, 2 ..., or those that nnunet
    states."""
    other_labels: Literal["error", "background"] = "error"
    """What values of no class mean: error, or background, which is class 0."""
    instances: Literal["sparse", "dense"] | None = None
    """If the labels number objects, whose boundaries within slices become class 1: sparse for objects on a
    background, 0; dense for objects that fill the volume, where 0 is boundary too. null if the labels are classes."""
    ignore_label: int | None = None
    """Value of voxels that count neither in the loss nor in scores, such as 255; null if all count; by default null,
    or that of the label ignore of nnunet."""
    plane: Literal["z", "y", "x"] = "z"
    """Axis along which slices are stacked; ranges of slices count along it."""
    boundaries: bool = False
    """Whether class 1 is the boundary between objects, as it always is with instances; if so, object errors are
    computed too."""
    intensity: tuple[float, float] | None = None
    """Voxel values mapped to 0 and 1; by default percentiles of each volume."""
    fill: float | None = None
    """Voxel value that replaces NaN and infinity."""

    @field_validator("train")
    @classmethod
    def _not_empty(cls, train: tuple[LabelledFiles, ...]) -> tuple[LabelledFiles, ...]:
        if not train:
            raise ValueError("give at least one pair of image and labels")
        return train

    @field_validator("root")
    @classmethod
    def _beside_file(cls, root: Path | None, info: ValidationInfo) -> Path | None:
        return None if root is None else config_folder(info) / root.expanduser()

    @field_validator("intensity")
    @classmethod
    def _ascending(cls, intensity: tuple[float, float] | None) -> tuple[float, float] | None:
        if intensity is not None and intensity[0] >= intensity[1]:
            raise ValueError("the first value must be below the second")
        return intensity

    @field_validator("label_values", "instances", "ignore_label")
    @classmethod
    def _of_labels(cls, value: Any, info: ValidationInfo) -> Any:
        """Check an option of labels together with those above it."""
        above = {name: info.data[name] for name in _OF_LABELS if name in info.data}
        try:
            LabelValues(**above | {str(info.field_name): value}).check(info.data.get("classes"))
        except ConfigError as error:
            # Those above were right, so it is this option, and pydantic itself says which it is.
            raise ValueError(str(error).partition(": ")[2]) from error
        return value

    @field_validator("boundaries")
    @classmethod
    def _of_two_classes(cls, boundaries: bool, info: ValidationInfo) -> bool:
        if boundaries and info.data.get("classes", 2) != 2:
            raise ValueError("boundaries need classes: 2, inside and boundary")
        return boundaries

    @property
    def label_options(self) -> LabelValues:
        """What the values in label files mean."""
        return LabelValues(**{name: getattr(self, name) for name in _OF_LABELS})

    def with_root(self) -> Self:
        """Return a data set whose files are found wherever its configuration is written: in the current folder by default.

        One that was read from a file or a dict has a root already.
        """
        return self if self.root is not None else self.model_copy(update={"root": Path.cwd()})

    @model_validator(mode="wrap")
    @classmethod
    def _default_root(
        cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        if (folder := value.get("nnunet")) is not None:
            value = {name: given for name, given in value.items() if name != "nnunet"}
            asked = {"nnunet": folder, "root": value.pop("root", None) or "."}
            value = cls._of_nnunet(_NnunetOptions.model_validate(asked, context=info.context).nnunet, value)
        elif info.context and value.get("root") is None:
            value = {**value, "root": "."}
        values = value.get("label_values")
        if isinstance(values, list | tuple) and len(values) > 1:
            value = {"classes": len(values), **value}
        return handler(value)

    @classmethod
    def _of_nnunet(cls, found: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options found in a folder of nnU-Net's with those that are given beside it, which come first."""
        replaced = {"classes"} if given.get("label_values") is not None else set()
        if given.get("instances") is not None:  # the values number objects, whatever dataset.json calls them
            replaced = {"classes", "label_values", "ignore_label"}
        return {name: value for name, value in found.items() if name not in replaced} | given


def nnunet_options(folder: Path, channel: int | None = None) -> dict[str, Any]:
    """Return the options of the section ``data`` that a data set in nnU-Net's raw format stands for.

    The cases in ``imagesTr`` and ``labelsTr`` are for training, those in ``imagesTs`` that have labels in ``labelsTs`` for
    testing. The format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md.

    Args:
        folder: the folder of the data set.
        channel: which of several images of each case to read, from 0; None if there is only one.

    Returns:
        ``name``, ``train``, ``classes``, ``label_values``, and ``test`` and ``ignore_label`` if there are such; paths are
        relative to the folder.

    Raises:
        ConfigError: the folder is no such data set, has several channels and none was chosen, training images without
            labels or labels without an image, a single label, or labels that are regions.
    """
    try:
        described = json.loads(read_bounded(folder / "dataset.json", LARGEST_DESCRIPTION))
        if not isinstance(described, dict):
            raise ValueError("it holds no object")
    except _DAMAGED as error:
        raise ConfigError(
            f"{folder}: its dataset.json cannot be read ({reason(error)}); name the folder of a data set in nnU-Net's "
            "raw format"
        ) from error
    values, ignored = _nnunet_values(folder, described)
    ending = str(described.get("file_ending", ".nii.gz"))  # not in data sets of nnU-Net's first version
    suffix = f"_{_nnunet_channel(folder, described, channel):04d}{ending}"
    images, labels = _nnunet_cases(folder / "imagesTr", suffix), _nnunet_cases(folder / "labelsTr", ending)
    for case in sorted(images ^ labels) or ([] if images else ["CASE"]):
        raise ConfigError(
            f"{folder}: has no pair of imagesTr/{case}{suffix} and labelsTr/{case}{ending}; name the folder of a data set in "
            "nnU-Net's raw format in which each case has both"
        )
    tests = _nnunet_cases(folder / "imagesTs", suffix) & _nnunet_cases(folder / "labelsTs", ending)
    pairs = {
        split: [
            {"image": f"images{part}/{case}{suffix}", "labels": f"labels{part}/{case}{ending}"}
            for case in sorted(cases)
        ]
        for split, part, cases in (("train", "Tr", images), ("test", "Ts", tests))
        if cases
    }
    found = {"name": folder.name, "classes": len(values), "label_values": values, **pairs}
    return found if ignored is None else {**found, "ignore_label": ignored}


def _nnunet_channel(folder: Path, described: dict[str, Any], channel: int | None) -> int:
    """Return the number of the channel to read, by which files are named."""
    names: Any = described.get("channel_names", described.get("modality"))
    count = len(names) if isinstance(names, dict | list) and names else 1
    if channel is None and count > 1:
        numbered = names.items() if isinstance(names, dict) else enumerate(names)
        listed = ", ".join(f"{number} ({name})" for number, name in numbered)
        raise ConfigError(
            f"{folder}: has the channels {listed:.200}; choose one, as nnunet: {{path: {folder}, channel: 0}}"
        )
    if channel is not None and channel >= count:
        raise ConfigError(f"{folder}: has no channel {channel}; its channels are 0 to {count - 1}")
    return channel or 0


def _nnunet_values(folder: Path, described: dict[str, Any]) -> tuple[list[int], int | None]:
    """Return the value of each class, the background first, and that of voxels to ignore."""
    labels = described.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    if all(isinstance(value, str) for value in labels.values()):  # nnU-Net's first version: value to name
        labels = {name: int(value) if value.isdecimal() else value for value, name in labels.items()}
    one = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in labels.items()
    }
    for name, value in one.items():
        if type(value) is not int:
            raise ConfigError(
                f"{folder}: its label {name!r:.40} has the value {value!r:.40}; evenslice reads whole numbers, not "
                "regions; name the files in data.train and data.test, with data.label_values, in place of data.nnunet"
            )
    values = sorted(value for name, value in one.items() if name != "ignore")
    if len(values) < 2:
        raise ConfigError(
            f"{folder}: its dataset.json has labels for {len(values)} classes; evenslice needs a background and at "
            "least one other"
        )
    return values, one.get("ignore")


def _nnunet_cases(folder: Path, suffix: str) -> set[str]:
    """Return the cases of which a folder has files; macOS puts a file ._NAME beside each that it copies to some disks."""
    return {
        file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}") if not file.name.startswith(".")
    }
