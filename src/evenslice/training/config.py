"""The options of ``train``, by section: what each means, its default and its range.

    config = load_config("train.yaml", TrainConfig)
    config.training.steps

What is checked here needs no file but the configuration; whether the data are what the configuration says,
``evenslice.training.data`` checks.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path  # pydantic reads the annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from evenslice._core import ConfigError, Section, nearest, needs_extra, to_yaml

with needs_extra("train", "a configuration"):
    from pydantic import (
        AfterValidator,
        BeforeValidator,
        Field,
        ModelWrapValidatorHandler,
        SerializerFunctionWrapHandler,
        ValidationInfo,
        field_validator,
        model_serializer,
        model_validator,
    )

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "AugmentationConfig",
    "DataConfig",
    "ModelConfig",
    "Slices",
    "Source",
    "Strategy",
    "Tie",
    "TrainConfig",
    "TrainingConfig",
    "VolumeFile",
    "Weights",
    "check_strategy",
    "default_yaml",
]


def _as_text(path: Any) -> str:
    if not isinstance(path, str | Path):
        raise ValueError("should be a path")  # pydantic adds the place to a ValueError
    return str(path)


FileName = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
"""An option that names a file; an address, which has two slashes in it, stays as it is."""


class VolumeFile(Section):
    """A file that holds a volume; a path alone will do."""

    path: FileName = Field(description="The file, or the Zarr folder or its address.")
    axes: str | None = Field(default=None, description="Names of its axes as stored, such as xyz or tzyx.")
    select: dict[str, int] = Field(
        default={}, description="Which entry to read of other axes, such as {t: 0}."
    )
    level: int = Field(default=0, ge=0, description="Resolution level of a multiscale image, 0 the finest.")

    @model_validator(mode="wrap")
    @classmethod
    def _from_path(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return handler(value if isinstance(value, dict | cls) else {"path": value})

    @model_serializer(mode="wrap")
    def _to_path(self, handler: SerializerFunctionWrapHandler) -> Any:
        values: dict[str, Any] = handler(self)
        only_path = (self.axes, self.select, self.level) == (None, {}, 0)
        return values["path"] if only_path else values


class Source(Section):
    """An image, the labels that belong to it, and which of their slices are meant."""

    image: VolumeFile = Field(description="The image: a path, or path with axes, select, level.")
    labels: VolumeFile = Field(description="The class of each voxel, in a file of the image's shape.")
    slices: tuple[int, int] | None = Field(
        default=None, description="First slice and the one after the last, from 0; all slices without it."
    )
    spacing: tuple[float, float, float] | None = Field(
        default=None, description="Voxel size along z, y, x, instead of the image file's."
    )
    unit: str | None = Field(default=None, description="Unit of the spacing, such as nm, um or mm.")

    @field_validator("slices")
    @classmethod
    def _ascending(cls, slices: tuple[int, int] | None) -> tuple[int, int] | None:
        if slices is not None and not 0 <= slices[0] < slices[1]:
            raise ValueError(
                "give the first slice and the one after the last, the first at least 0 and below the second"
            )
        return slices


class DataConfig(Section):
    """A data set: pairs of images and labels, and which of them train, choose and test."""

    name: str = Field(default="data", min_length=1, description="What the data set is called in results.")
    root: Path | None = Field(
        default=None, description="Folder that relative paths start from; by default that of this file."
    )
    train: tuple[Source, ...] = Field(description="Pairs of image and labels to train on.")
    validation: tuple[Source, ...] = Field(
        default=(),
        description="Pairs to validate on; without any, a share of what trains can be kept out for it.",
    )
    test: tuple[Source, ...] = Field(default=(), description="Pairs to test the final network on.")
    validation_fraction: float = Field(
        default=0,
        ge=0,
        le=0.5,
        description="Share of what trains to keep out where no pairs for validation are given: the last of the training pairs, or the last slices of each if there are fewer than four. 0 trains on everything and validates on nothing.",
    )
    classes: int = Field(default=2, ge=2, description="Number of classes, background included.")
    label_values: tuple[int, ...] | None = Field(
        default=None,
        description="The voxel value of each class in the label files, such as [0, 255]; by default 0, 1, 2 ...",
    )
    boundaries: bool = Field(
        default=False,
        description="Whether class 1 is the boundary between objects; then errors of the objects are computed too.",
    )
    intensity: tuple[float, float] | None = Field(
        default=None, description="Voxel values that become 0 and 1; by default percentiles of each volume."
    )
    fill: float | None = Field(default=None, description="Voxel value that stands in for NaN and infinity.")

    @field_validator("train")
    @classmethod
    def _not_empty(cls, train: tuple[Source, ...]) -> tuple[Source, ...]:
        if not train:
            raise ValueError("give at least one pair of image and labels")
        return train

    @field_validator("root")
    @classmethod
    def _beside_file(cls, root: Path | None, info: ValidationInfo) -> Path | None:
        return None if root is None else _folder(info) / root.expanduser()

    @field_validator("intensity")
    @classmethod
    def _ascending(cls, intensity: tuple[float, float] | None) -> tuple[float, float] | None:
        if intensity is not None and intensity[0] >= intensity[1]:
            raise ValueError("the first value must be below the second")
        return intensity

    @field_validator("label_values")
    @classmethod
    def _one_for_each_class(
        cls, values: tuple[int, ...] | None, info: ValidationInfo
    ) -> tuple[int, ...] | None:
        classes = info.data.get("classes", 2)
        if values is not None and not len(set(values)) == len(values) == classes:
            raise ValueError(f"give a different value for each of the {classes} classes")
        return values

    @field_validator("boundaries")
    @classmethod
    def _of_two_classes(cls, boundaries: bool, info: ValidationInfo) -> bool:
        if boundaries and info.data.get("classes", 2) != 2:
            raise ValueError("boundaries need classes: 2, inside and boundary")
        return boundaries

    @model_validator(mode="wrap")
    @classmethod
    def _default_root(
        cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        if isinstance(value, dict) and info.context and value.get("root") is None:
            value = {**value, "root": "."}
        return handler(value)


def _odd(slices: int) -> int:
    if slices % 2 == 0:
        raise ValueError("a window has an odd number of slices, such as 3 or 5, with one in the middle")
    return slices


def _beside_file(weights: str, info: ValidationInfo) -> str:
    beside = _folder(info) / weights
    return str(beside) if beside.is_file() else weights


def _known_strategy(strategy: str | tuple[float, ...]) -> str | tuple[float, ...]:
    from evenslice.neutralizing import STRATEGIES

    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(nearest(strategy, STRATEGIES))
    return strategy


def _known_tie(tie: str | None) -> str | None:
    from evenslice.neutralizing import TIES

    if tie is not None and tie not in TIES:
        raise ValueError(f"{nearest(tie, TIES)}, or null to leave the slices free")
    return tie


def check_strategy(strategy: str | tuple[float, ...], slices: int) -> None:
    """Raise ValueError unless a strategy suits the number of slices."""
    from evenslice.neutralizing import find_strategy

    with _as_value_error():
        find_strategy(strategy, slices)


Slices = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""An option that says how many slices a window has."""

Weights = Annotated[str, Field(min_length=1), AfterValidator(_beside_file)]
"""An option that says which weights; a file of that name beside the configuration comes first."""

Strategy = Annotated[str | tuple[float, ...], AfterValidator(_known_strategy)]
"""An option that names a strategy, or gives the weights of a symmetric profile."""

Tie = Annotated[str | None, AfterValidator(_known_tie)]
"""An option that names a tie."""


class ModelConfig(Section):
    """The network, and what becomes of its first layer."""

    spec: str = Field(
        default="smp:Unet/tu-tf_efficientnet_lite0",
        min_length=1,
        description="The network: smp:Unet/resnet34, timm:NAME, torchvision:NAME, or package.module:function.",
    )
    weights: Weights = Field(
        default="imagenet", description="Its weights: imagenet, none (random) or a file."
    )
    slices: Slices = Field(default=3, description="Slices in a window, odd.")
    step: int = Field(default=1, ge=1, description="Distance between the slices of a window.")
    strategy: Strategy = Field(
        default="uniform",
        description="How colour kernels become slice kernels: pretrained, uniform, center, profile, mirror, shuffle, equalize, reinit, random, mixer; or the weights of a symmetric profile.",
    )
    tie: Tie = Field(default=None, description="Keep the symmetry while training: mirror or uniform.")

    @field_validator("strategy")
    @classmethod
    def _fits_slices(cls, strategy: str | tuple[float, ...], info: ValidationInfo) -> str | tuple[float, ...]:
        if "slices" in info.data:
            check_strategy(strategy, info.data["slices"])
        return strategy

    @property
    def extent(self) -> int:
        """The number of slices from the first to the last of a window.

        Example:
            >>> ModelConfig(slices=5, step=2).extent
            9
        """
        return (self.slices - 1) * self.step + 1

    @property
    def guard(self) -> int:
        """The number of slices by which a window reaches beyond its middle slice.

        Example:
            >>> ModelConfig(slices=5, step=2).guard
            4
        """
        return self.slices // 2 * self.step


class AugmentationConfig(Section):
    """What happens to crops at random; all slices of a window are treated alike."""

    flips: bool = Field(default=True, description="Flip crops along y and x.")
    rotations: bool = Field(default=True, description="Turn crops by quarter turns in the plane.")
    z_flip: bool = Field(default=True, description="Reverse the order of the slices.")
    intensity: bool = Field(default=True, description="Change brightness, contrast and gamma, and add noise.")


class TrainingConfig(Section):
    """How the network is trained."""

    steps: int = Field(default=2000, ge=1, description="Optimizer steps.")
    batch: int = Field(default=8, ge=1, description="Crops in a step, over all devices.")
    crop: tuple[int, int] = Field(
        default=(192, 192),
        description="Size of the crops along y and x; a smaller plane is mirrored beyond its border.",
    )
    loss: Literal["dice_ce", "dice_bce"] = Field(
        default="dice_ce",
        description="Dice with cross entropy (dice_ce) or with binary cross entropy (dice_bce).",
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="The highest learning rate, of AdamW.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the steps in which the learning rate rises; then it falls as a cosine.",
    )
    foreground: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the crops drawn around a voxel of the foreground, each class as often as the others.",
    )
    validate_every: int = Field(
        default=200,
        ge=1,
        description="Steps between validations, each of about a tenth of the pixels that were trained on, but at least 8 slices.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many validations without a better one; null never stops early.",
    )
    keep: Literal["auto", "last", "best"] = Field(
        default="auto",
        description="Which network comes out: the last, the best in validation, or auto: the best where patience may stop training early, else the last, which has been trained for longest and at the lowest learning rate.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision: float32, bfloat16, or auto (bfloat16 where the hardware has it).",
    )
    accelerator: str = Field(
        default="auto", min_length=1, description="Where to train: auto, cpu, gpu or cuda, mps."
    )
    devices: int = Field(default=1, ge=1, description="How many devices to train on.")
    workers: int = Field(
        default=0, ge=0, description="Processes that cut crops; 0 cuts them in the training process."
    )
    tensorboard: bool = Field(default=False, description="Write a TensorBoard log beside the CSV file.")
    mlflow: bool = Field(default=False, description="Write to a local MLflow store beside the CSV file.")
    monitor_every: int | None = Field(
        default=200, ge=1, description="Steps between measurements of the slice bias; null measures none."
    )

    @field_validator("crop")
    @classmethod
    def _positive(cls, crop: tuple[int, int]) -> tuple[int, int]:
        if min(crop) < 1:
            raise ValueError("both sizes must be at least 1")
        return crop

    @field_validator("devices")
    @classmethod
    def _divides_batch(cls, devices: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", devices)
        if batch % devices:
            raise ValueError(f"must divide the batch of {batch}, so that each device gets as many crops")
        return devices

    @property
    def keeps_best(self) -> bool:
        """Whether the network that comes out is the best in validation, not the last.

        Example:
            >>> TrainingConfig().keeps_best, TrainingConfig(patience=5).keeps_best
            (False, True)
        """
        return self.keep == "best" or (self.keep == "auto" and self.patience is not None)


class TrainConfig(Section):
    """Everything that a training run depends on.

    Example:
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> config = TrainConfig.model_validate({"data": {"train": [pair]}, "training": {"steps": 500}})
        >>> config.training.steps, config.model.strategy, str(config.data.train[0].image.path)
        (500, 'uniform', 'image.tif')
    """

    data: DataConfig = Field(description="What to train on.")
    model: ModelConfig = Field(default=ModelConfig(), description="Which network.")
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="How crops are varied."
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="How it is trained.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of everything that is drawn.")


def default_yaml() -> str:
    """Return a configuration of ``train`` to start from: every option with its default and its meaning.

    Example:
        >>> print(default_yaml()[:34])
        # What to train on.
        data:
          # What
    """
    pairs = [
        Source.model_validate({"image": f"{s}_image.tif", "labels": f"{s}_labels.tif"})
        for s in ("train", "test")
    ]
    return to_yaml(TrainConfig(data=DataConfig(train=(pairs[0],), test=(pairs[1],))))


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Let pydantic add the place to what our own checks find."""
    try:
        yield
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _folder(info: ValidationInfo) -> Path:
    """Return the folder that paths in a configuration start from; the working directory where there is no file."""
    return Path((info.context or {}).get("folder", ""))
