"""The options of the data set of ``train``: which files and slices, and how their voxels are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from evenslice._core import ConfigError, Section, needs_extra
from evenslice.training.nnunet import nnunet_options
from evenslice.training.option_types import FileOption, config_folder
from evenslice.volumes import LabelValues

with needs_extra("train", "a configuration"):
    from pydantic import (
        Field,
        ModelWrapValidatorHandler,
        SerializerFunctionWrapHandler,
        ValidationError,
        ValidationInfo,
        field_validator,
        model_serializer,
        model_validator,
    )

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DataConfig", "LabelledFiles", "NnunetFolder", "VolumeFile"]


_OF_LABELS = tuple(field.name for field in fields(LabelValues))


class VolumeFile(Section):
    """A file that holds a volume; the path alone is enough."""

    path: FileOption = Field(description="File, Zarr folder, or address.")
    axes: str | None = Field(default=None, description="Names of the stored axes, such as xyz or tzyx.")
    select: dict[str, int] = Field(default={}, description="Index along other axes, such as {t: 0}.")
    level: int = Field(
        default=0, ge=0, description="Resolution level of a multiscale image; 0 is the finest."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _from_path(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return handler(value if isinstance(value, dict | cls) else {"path": value})

    @model_serializer(mode="wrap")
    def _to_path(self, handler: SerializerFunctionWrapHandler) -> Any:
        values: dict[str, Any] = handler(self)
        only_path = (self.axes, self.select, self.level) == (None, {}, 0)
        return values["path"] if only_path else values


class LabelledFiles(Section):
    """An image and its labels, or some of their slices."""

    image: VolumeFile = Field(description="Image: a path, or a section of path, axes, select and level.")
    labels: VolumeFile = Field(description="Class of each voxel, in a file of the same shape.")
    slices: tuple[int, int] | None = Field(
        default=None, description="First slice and one past the last, from 0; by default all slices."
    )
    spacing: tuple[float, float, float] | None = Field(
        default=None, description="Voxel size along z, y, x; by default as the image file states."
    )
    unit: str | None = Field(default=None, description="Unit of the spacing, such as nm, um or mm.")

    @field_validator("slices")
    @classmethod
    def _ascending(cls, slices: tuple[int, int] | None) -> tuple[int, int] | None:
        if slices is not None and not 0 <= slices[0] < slices[1]:
            raise ValueError("give the first slice and the one after the last, with 0 <= first < last")
        return slices


class NnunetFolder(Section):
    """A data set in nnU-Net's raw format; the path alone is enough if there is one channel."""

    path: Path = Field(description="Folder with dataset.json, imagesTr and labelsTr.")
    channel: int | None = Field(
        default=None, ge=0, description="Which image of each case to read, counted from 0."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _from_path(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return handler(value if isinstance(value, dict | cls) else {"path": value})


class _WithNnunet(Section):
    """What names such a folder, so that errors have its place."""

    nnunet: NnunetFolder


class DataConfig(Section):
    """A data set: pairs of images and labels for training, validation and testing."""

    name: str = Field(
        default="data",
        min_length=1,
        description="Name of the data set in results; by default that of nnU-Net's folder, else data.",
    )
    root: Path | None = Field(
        default=None, description="Folder that paths are relative to; by default this file's."
    )
    nnunet: NnunetFolder | None = Field(
        default=None,
        description=(
            "The folder of a data set in nnU-Net's raw format, instead of pairs for train and test: delete these two, which "
            "then come from its files (test if there are labelsTs), as do name, classes, label_values and ignore_label, "
            "unless given here; the last three do not with instances. In a study with folds, the cases of imagesTr are its "
            "pairs."
        ),
    )
    train: tuple[LabelledFiles, ...] = Field(description="Pairs of image and labels for training.")
    validation: tuple[LabelledFiles, ...] = Field(
        default=(),
        description="Pairs for validation; without any, part of the training data can be held out.",
    )
    test: tuple[LabelledFiles, ...] = Field(default=(), description="Pairs for testing the final network.")
    validation_fraction: float = Field(
        default=0,
        ge=0,
        le=0.5,
        description=(
            "Fraction of the training data to hold out if there are no validation pairs: the last training pairs, "
            "or the last slices of each if there are fewer than four. With 0, all of it is used for training, and "
            "nothing for validation."
        ),
    )
    classes: int = Field(
        default=2,
        ge=2,
        description=(
            "Number of classes, including background; by default as many as label_values or, with nnunet, as its labels, "
            "else 2."
        ),
    )
    label_values: tuple[int, ...] | None = Field(
        default=None,
        description=(
            "Voxel value of each class in the label files, such as [0, 255]; by default 0, 1, 2 ..., or those that nnunet "
            "states."
        ),
    )
    other_labels: Literal["error", "background"] = Field(
        default="error",
        description="What values of no class mean: error, or background, which is class 0.",
    )
    instances: Literal["sparse", "dense"] | None = Field(
        default=None,
        description=(
            "If the labels number objects, whose boundaries within slices become class 1: sparse for objects on a "
            "background, 0; dense for objects that fill the volume, where 0 is boundary too. null if the labels are "
            "classes."
        ),
    )
    ignore_label: int | None = Field(
        default=None,
        description=(
            "Value of voxels that count neither in the loss nor in scores, such as 255; null if all count; by default null, "
            "or that of the label ignore of nnunet."
        ),
    )
    plane: Literal["z", "y", "x"] = Field(
        default="z",
        description="Axis along which slices are stacked; ranges of slices count along it.",
    )
    boundaries: bool = Field(
        default=False,
        description=(
            "Whether class 1 is the boundary between objects, as it always is with instances; if so, object errors are "
            "computed too."
        ),
    )
    intensity: tuple[float, float] | None = Field(
        default=None, description="Voxel values mapped to 0 and 1; by default percentiles of each volume."
    )
    fill: float | None = Field(default=None, description="Voxel value that replaces NaN and infinity.")

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
        classes = info.data.get("classes")
        if info.field_name == "label_values":
            _check_count(value, classes)
        if info.field_name == "instances" and above.get("label_values") is not None:
            classes = None  # as many as the values, which are what is wrong beside numbered objects
        try:
            LabelValues(**above | {str(info.field_name): value}).check(classes)
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
        if isinstance(value, dict) and value.get("nnunet") is not None:
            value = _of_nnunet(value, info, cls._arrange)
        elif isinstance(value, dict) and info.context and value.get("root") is None:
            value = {**value, "root": "."}
        return handler(_counted(value) if isinstance(value, dict) else value)

    @classmethod
    def _arrange(cls, found: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        """Return the options found in a folder of nnU-Net's, as they fit to those that are given beside it."""
        return found


def _check_count(values: tuple[int, ...] | None, classes: int | None) -> None:
    """Raise ValueError unless there is a value for each class; classes are None if their number is wrong itself."""
    if values is None or classes in (None, len(values)):
        return
    if len(values) < 2:
        raise ValueError(f"has {len(values)} of the values of {classes} classes; give one for each")
    raise ValueError(
        f"has {len(values)} values, but data.classes is {classes}; set data.classes: {len(values)}"
    )


def _counted(values: dict[str, Any]) -> dict[str, Any]:
    """Return options with the number of classes, where that of their values says it."""
    of_classes = values.get("label_values")
    if "classes" in values or not isinstance(of_classes, list | tuple) or len(of_classes) < 2:
        return values
    return {**values, "classes": len(of_classes)}


def _of_nnunet(
    values: dict[str, Any],
    info: ValidationInfo,
    arrange: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Replace the folder of a data set of nnU-Net by what it stands for."""
    given = _WithNnunet.model_validate({"nnunet": values["nnunet"]}, context=info.context).nnunet
    above = Path(values.get("root") or "").expanduser()
    folder = (config_folder(info) / above / given.path.expanduser()).absolute()
    try:
        found = nnunet_options(folder, given.channel)
    except ConfigError as error:
        fault = {"error": ValueError(str(error))}
        raise ValidationError.from_exception_data(
            "data",
            [{"type": "value_error", "loc": ("nnunet",), "input": values["nnunet"], "ctx": fault}],
        ) from error
    options = {name: value for name, value in values.items() if name != "nnunet"}
    found = arrange(_without_replaced(found, options), values)
    return {**found, **options, "root": folder}


def _without_replaced(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return what was found without what options that are given say otherwise, under names of their own."""
    replaced = set()
    if given.get("label_values") is not None:
        replaced = {"classes"}
    if (
        given.get("instances") is not None
    ):  # the values number objects, then, whatever dataset.json calls them
        replaced = {"classes", "label_values", "ignore_label"}
    return {name: value for name, value in found.items() if name not in replaced}
