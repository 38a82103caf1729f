"""Configurations: YAML files checked before anything runs.

    config = load_config("train.yaml", TrainConfig)
    config.training.steps
    print(to_yaml(config))      every option, with what it means as a comment

A ``Section`` is a group of options. Those of ``train`` are in ``TrainConfig`` and the sections it names; the options of
another command are a ``Section`` of their own. What is checked here needs no file but the configuration; whether the data
are what the configuration says, ``evenslice.datasets`` checks.
"""

from __future__ import annotations

import reprlib
import textwrap
from contextlib import contextmanager
from pathlib import Path  # pydantic reads the annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from evenslice.errors import ConfigError, nearest, needs_extra

with needs_extra("train", "a configuration"):
    import yaml
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Field,
        ModelWrapValidatorHandler,
        SerializerFunctionWrapHandler,
        ValidationError,
        ValidationInfo,
        field_validator,
        model_serializer,
        model_validator,
    )
    from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

__all__ = [
    "AugmentationConfig",
    "DataConfig",
    "ModelConfig",
    "Section",
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
    "load_config",
    "to_yaml",
]

LARGEST_FILE = 2**20
"""Bytes of the largest configuration that is read."""

Config = TypeVar("Config", bound="Section")


class Section(BaseModel):
    """A group of options: immutable, unknown names refused, each option with a description.

    Example:
        >>> class Colours(Section):
        ...     shade: int = Field(default=3, ge=0, description="How dark.")
        >>> print(to_yaml(Colours()), end="")
        # How dark.
        shade: 3
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if values is None:  # a section whose options are all commented out
            return {}
        if isinstance(values, dict):
            unknown = [str(key) for key in values if key not in cls.model_fields]
            if unknown:
                help_ = nearest(unknown[0], cls.model_fields)
                raise PydanticCustomError(
                    "unknown_key", "no such option; {help}", {"key": unknown[0], "help": help_}
                )
        return values


class VolumeFile(Section):
    """A file that holds a volume; a path alone will do."""

    path: Path = Field(description="The file, or the Zarr folder.")
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
        description="Pairs to choose the best network on; without any, the last of the training pairs are kept out for it, or the last slices of each if there are fewer than four.",
    )
    test: tuple[Source, ...] = Field(default=(), description="Pairs to test the final network on.")
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of what trains to keep out where no pairs for validation are given; 0 validates on nothing.",
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
    from evenslice.strategies import STRATEGIES

    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(nearest(strategy, STRATEGIES))
    return strategy


def _known_tie(tie: str | None) -> str | None:
    from evenslice.tying import TIES

    if tie is not None and tie not in TIES:
        raise ValueError(f"{nearest(tie, TIES)}, or null to leave the slices free")
    return tie


def check_strategy(strategy: str | tuple[float, ...], slices: int) -> None:
    """Raise ValueError unless a strategy suits the number of slices."""
    from evenslice.strategies import find_strategy

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
        description="How colour kernels become slice kernels: pretrained, uniform, center, profile, mirror, shuffle, equalize, reinit, random; or the weights of a symmetric profile.",
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
    learning_rate: float = Field(default=1e-3, gt=0, description="The highest learning rate, of AdamW.")
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
    validate_every: int = Field(default=200, ge=1, description="Steps between validations.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many validations without a better one; null never stops early.",
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


def load_config(path: str | os.PathLike[str], kind: type[Config]) -> Config:
    r"""Read a configuration from a YAML file.

    Relative paths of data, and of a file of weights that lies there, start from the folder of the file; in what is
    returned they are absolute.

    Args:
        path: the file.
        kind: what it configures, such as ``TrainConfig``.

    Raises:
        ConfigError: the file cannot be read or is no YAML, or an option is wrong; the one line says where it stands, as
            ``data.train[0].slices``, what it is, and what would be right.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "train.yaml"
        >>> _ = file.write_text("data: {train: [{image: a.tif, labels: b.tif}]}\ntraining: {step: 500}")
        >>> load_config(file, TrainConfig)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        evenslice.errors.ConfigError: ...train.yaml: training.step: no such option; did you mean 'steps'? known: ...
    """
    path = Path(path)
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {_shown(values)}, no options; write them as 'name: value', one a line"
        )
    try:
        return kind.model_validate(values, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_describe(error, values)}") from error


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


def to_yaml(config: Section) -> str:
    """Return a configuration as YAML with every option and, as a comment, what it means.

    Example:
        >>> print(to_yaml(AugmentationConfig(flips=False)).splitlines()[1])
        flips: false
    """
    return "\n".join(_lines(config, config.model_dump(mode="json"))) + "\n"


def _lines(section: Section, values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write the options of a section, each below its description."""
    for name, info in type(section).model_fields.items():
        for line in textwrap.wrap(info.description or "", 100 - len(indent)):
            yield f"{indent}# {line}"
        inner, value = getattr(section, name), values[name]
        if isinstance(inner, Section) and isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(inner, value, indent + "  ")
        elif isinstance(inner, tuple) and any(isinstance(item, Section) for item in inner):
            yield f"{indent}{name}:"
            for item in inner:
                yield f"{indent}  - {_flow(item.model_dump(mode='json', exclude_defaults=True))}"
        else:
            yield f"{indent}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Write a value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**20, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Plain values alone, and no name twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{name!r} stands twice in one section; leave one", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from error
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{path}: has more than {LARGEST_FILE:,} bytes; name a YAML file of options")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: is not valid YAML ({reason}); write options as 'name: value'") from error


def _describe(error: ValidationError, values: Any) -> str:
    """Word the first of the faults that pydantic found in values: where, what, and what would be right."""
    faults = error.errors(include_url=False)
    more = len({_place(fault, values) for fault in faults}) - 1
    return _worded(faults[0], values) + (f" (and {more} more)" if more else "")


# Pydantic speaks of Python's types; a configuration has lists and sections.
_REASONS = {
    "dict_type": "should be 'name: value' pairs",
    "missing": "has too few values",
    "model_type": "should be a section of options, 'name: value' one a line",
    "path_type": "should be a path",
    "too_long": "has too many values",
    "tuple_type": "should be a list",
}


def _worded(fault: ErrorDetails, values: Any) -> str:
    place, kind = _place(fault, values), fault["type"]
    if kind == "unknown_key":
        return f"{place}: {fault['msg']}"
    if kind == "missing" and isinstance(fault["loc"][-1], str):
        return f"{place}: is missing; give one"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place}: {_shown(fault['input'])}: {_REASONS.get(kind, reason)}"


def _shown(value: Any) -> str:
    """Return what the user wrote, cut short: references within YAML can make a little text a huge value."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)


def _place(fault: ErrorDetails, values: Any) -> str:
    """Return the path of a fault as a user would write it; pydantic's goes on into what a type is made of."""
    path = ""
    for key in fault["loc"]:
        if isinstance(values, list) and isinstance(key, int) and key < len(values):
            path, values = f"{path}[{key}]", values[key]
        elif (
            isinstance(values, dict)
            and isinstance(key, str)
            and (key in values or fault["type"] == "missing")
        ):
            path, values = f"{path}.{key}", values.get(key)
        else:
            break
    if fault["type"] == "unknown_key":
        path += f".{fault['ctx']['key']}"
    return path.removeprefix(".")


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
