"""The configuration of ``train``: what each option means, its default and its range; folders of nnU-Net.

    config = load_config("train.yaml", TrainConfig)
    config.training.steps

These checks need only the configuration; ``evenslice.training.data`` checks the data against it.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    ModelError,
    Section,
    needs_extra,
    read_json,
    reason,
    spelled_in_configuration,
    to_yaml,
    without_secrets,
)
from evenslice.volumes import LabelValues, Reading, fingerprint, open_volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evenslice.volumes import Volume


with needs_extra("train", "a configuration"):
    from pydantic import (
        AfterValidator,
        BeforeValidator,
        Field,
        ModelWrapValidatorHandler,
        PositiveInt,
        SerializerFunctionWrapHandler,
        ValidationInfo,
        field_validator,
        model_serializer,
        model_validator,
    )


def config_folder(info: ValidationInfo) -> Path:
    """Return the folder to which paths in a configuration are relative; without a file, the working directory."""
    return Path((info.context or {}).get("folder", ""))


def _as_text(path: Any) -> str:
    if not isinstance(path, str | Path):
        raise ValueError("should be a path")  # pydantic adds the place
    return str(path)


FileOption = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
"""A file, kept as text since an address is not a path."""

SPLITS = ("train", "validation", "test")
"""The parts of a data set, each of several pairs of image and labels."""

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


class NnunetFolder(_Place):
    """A data set in nnU-Net's raw format; the path alone is enough if there is one channel."""

    path: Path
    """Folder with dataset.json, imagesTr and labelsTr."""
    channel: int | None = Field(default=None, ge=0)
    """Which image of each case to read, counted from 0."""


def _from_home(path: str | Path) -> Path:
    """Return a path with ~ replaced, or as it is if no such user is known, where ``Path.expanduser`` fails."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


class _NnunetOptions(Section):
    """Reads the options that such a folder stands for, so that errors have its place."""

    root: Path = Path()
    nnunet: NnunetFolder

    @field_validator("nnunet")
    @classmethod
    def _options(cls, given: NnunetFolder, info: ValidationInfo) -> Any:
        root = config_folder(info) / _from_home(info.data.get("root", "."))
        folder = (root / _from_home(given.path)).absolute()
        try:
            return {**_nnunet_options(folder, given.channel), "root": folder}
        except ConfigError as error:
            raise ValueError(str(error)) from error


class DataConfig(Section):
    """A data set: pairs of images and labels for training, validation and testing."""

    name: str = Field(default="data", min_length=1)
    """Name of the data set in results; by default the name of nnU-Net's folder, else data."""
    root: Path | None = None
    """Folder of relative paths; by default this file's."""
    nnunet: NnunetFolder | None = None
    """The folder of a data set in nnU-Net's raw format, instead of pairs for train and test: delete these two, which
    then come from its files (test if there are labelsTs), as do name, classes, label_values and ignore_label, unless
    given here; the last three do not with instances. In a study with folds, the cases of imagesTr are its pairs."""
    train: tuple[LabelledFiles, ...] = Field(min_length=1)
    """Pairs of image and labels for training."""
    validation: tuple[LabelledFiles, ...] = ()
    """Pairs for validation; without any, part of the training data can be held out."""
    test: tuple[LabelledFiles, ...] = ()
    """Pairs for testing the final network."""
    validation_fraction: float = Field(default=0, ge=0, le=0.5)
    """Fraction of the training data to hold out if there are no validation pairs: the last training pairs, or the
    last slices of each if there are fewer than four. With 0, all of it is trained on."""
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
    or nnU-Net's label ignore."""
    plane: Literal["z", "y", "x"] = "z"
    """Axis along which slices are stacked; ranges of slices count along it."""
    boundaries: bool = False
    """Class 1 is the boundary between objects, always so with instances: compute object errors, too."""
    intensity: tuple[float, float] | None = None
    """Voxel values mapped to 0 and 1; by default percentiles of each volume."""
    fill: float | None = None
    """Voxel value that replaces NaN and infinity."""

    @field_validator("root")
    @classmethod
    def _beside_file(cls, root: Path | None, info: ValidationInfo) -> Path | None:
        return None if root is None else config_folder(info) / _from_home(root)

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

    def path_of(self, file: VolumeFile) -> Path | str:
        """Return the path or the address of a file of the data set."""
        if "://" in file.path:
            return file.path
        return (self.root or Path()) / _from_home(file.path)

    def open(
        self, file: VolumeFile, *, spacing: Sequence[float] | None = None, unit: str | None = None
    ) -> Volume:
        """Open a file of the data set, with slices along its plane."""
        return open_volume(
            self.path_of(file),
            axes=file.axes,
            select=file.select,
            level=file.level,
            plane=self.plane,
            spacing=spacing,
            unit=unit,
        )

    def fingerprints(self) -> list[str]:
        """Return the fingerprints of all images and labels, in order.

        Raises:
            VolumeError: a file is missing, damaged or not a volume.
            ConfigError: an option does not fit a file.
        """
        pairs = [pair for split in SPLITS for pair in getattr(self, split)]
        files = {file.model_dump_json(): file for pair in pairs for file in (pair.image, pair.labels)}
        return sorted({fingerprint(self.open(file)) for file in files.values()})

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


def _beside_file(weights: str, info: ValidationInfo) -> str:
    if weights in ("imagenet", "none"):
        return weights
    beside = config_folder(info) / _from_home(weights)
    try:
        found = (file for file in (beside, beside / "model.safetensors") if file.is_file())
        return str(next(found, os.path.expanduser(weights)))  # noqa: PTH111
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); name a file that can") from error


def _odd(slices: int) -> int:
    if slices % 2 == 0:
        raise ValueError("a window has an odd number of slices, such as 3 or 5")
    return slices


def _fitting_strategy(strategy: str | tuple[float, ...], info: ValidationInfo) -> str | tuple[float, ...]:
    from evenslice.neutralizing import find_strategy

    try:
        find_strategy(strategy, info.data.get("slices", 3 if isinstance(strategy, str) else len(strategy)))
    except ConfigError as error:  # pydantic itself says which option of the configuration it is
        raise ValueError(str(error).partition(": ")[2]) from error
    return strategy


def _added_symmetry(value: str | None, info: ValidationInfo) -> str | None:
    """Raise ValueError if a tie or a place to average adds nothing to the strategy's own symmetry, or makes it another."""
    strategy = info.data.get("strategy")
    symmetric = strategy in ("center", "profile", "mirror") or isinstance(strategy, tuple)
    if value == "uniform" and info.field_name == "tie" and symmetric:
        raise ValueError("makes every strategy 'uniform'; choose the strategy 'uniform', or the tie 'mirror'")
    if value is not None and strategy == "twin":
        other = "'pretrained'" if info.field_name == "symmetrize" else "that of its name"
        raise ValueError(
            f"the strategy 'twin' is mirror-symmetric whatever is learned; omit {info.field_name}, or choose another "
            f"strategy, such as {other}"
        )
    return value


WeightsOption = Annotated[str, Field(min_length=1), AfterValidator(_beside_file)]
"""Weights by name or file; a file beside the configuration takes precedence."""


class ModelConfig(Section):
    """The network, and how its first layer is converted.

    Example: the strategy where none is given.
        >>> ModelConfig().strategy, ModelConfig(tie="uniform").strategy, ModelConfig(symmetrize="encoder").strategy
        ('twin', 'uniform', 'pretrained')
    """

    spec: str = Field(default="smp:Unet/tu-tf_efficientnet_lite0", min_length=1)
    """Network: smp:Unet/resnet34, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME, or
    package.module:function."""
    weights: WeightsOption = "imagenet"
    """Weights: imagenet, none (random), a file, or a folder for Hugging Face."""
    slices: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 3
    """Odd number of slices in a window; by default from a file of neutralize, else 3."""
    step: int = Field(default=1, ge=1)
    """Distance between the slices of a window."""
    strategy: Annotated[str | tuple[float, ...], AfterValidator(_fitting_strategy)] = "twin"
    """How colour kernels become slice kernels: pretrained, uniform, center, profile, mirror, twin, shuffle, equalize,
    reinit, random, mixer; or the weights of a symmetric profile. With symmetrize, the default is pretrained, and with
    a tie, the strategy of that name; a network saved by neutralize is left unchanged."""
    tie: Annotated[Literal["mirror", "uniform"] | None, AfterValidator(_added_symmetry)] = None
    """Symmetry to enforce during training: mirror or uniform."""
    symmetrize: Annotated[str | None, Field(min_length=1), AfterValidator(_added_symmetry)] = None
    """Where to average the results for a window and its mirror: output, encoder, or the name of a module; null for
    nowhere."""

    @model_validator(mode="before")
    @classmethod
    def _fitting_defaults(cls, values: Any, info: ValidationInfo) -> Any:
        """Choose a strategy that fits the other options, and what a saved network says of itself.

        A network need not be made symmetric in two ways.
        """
        from evenslice.neutralizing import read_saved

        if not isinstance(values, dict):
            return values
        fitting: dict[str, Any] = {}
        if values.get("tie") in ("mirror", "uniform"):
            fitting["strategy"] = values["tie"]
        if values.get("symmetrize") is not None:
            fitting["strategy"] = "pretrained"
        with suppress(ModelError, ValueError):  # of which reading the weights, or their option, will tell
            if saved := read_saved(_beside_file(str(values.get("weights", "imagenet")), info)):
                fitting |= {"strategy": "pretrained", "slices": saved[0].slices}
        return fitting | values

    @property
    def guard(self) -> int:
        """The number of slices that a window extends beyond its centre slice, on either side.

        Example:
            >>> ModelConfig(slices=5, step=2).guard
            4
        """
        return self.slices // 2 * self.step


class AugmentationConfig(Section):
    """Random augmentation of crops, the same for all slices of a window.

    Raises:
        pydantic.ValidationError: an option is unknown or out of range; of one in a file or a dict, ``train``, ``study`` and
            ``SliceWindows`` raise ConfigError.

    Example:
        >>> AugmentationConfig(rotations=False, missing_slices=0.1).z_flip
        True
    """

    flips: bool = True
    """Flip along y and x."""
    rotations: bool = True
    """Rotate in the plane by multiples of 90 degrees."""
    z_flip: bool = True
    """Reverse the order of slices."""
    intensity: bool = True
    """Change brightness, contrast and gamma, and add noise."""
    missing_slices: float = Field(default=0.0, ge=0, le=1)
    """Probability that a neighbouring slice is replaced by the middle slice, independently for each."""


LOSSES = {"segmentation": ("dice_ce", "dice_bce"), "classification": ("ce",)}
"""The losses of each task, the default first."""


class TrainingConfig(Section):
    """How the network is trained.

    Example: the options whose default depends on the task.
        >>> config = TrainingConfig(task="classification")
        >>> config.loss, config.stress
        ('ce', False)
    """

    task: Literal["segmentation", "classification"] = "segmentation"
    """What the network learns: the class of each pixel of the middle slice (segmentation), or of the pixel (y // 2, x
    // 2) of crops of size y, x (classification)."""
    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""
    batch: int = Field(default=8, ge=1)
    """Crops per step, over all devices."""
    crop: tuple[PositiveInt, PositiveInt] = (192, 192)
    """Size of crops along y and x; smaller planes are reflected at their borders."""
    loss: Literal["dice_ce", "dice_bce", "ce"] = "dice_ce"
    """Dice plus cross entropy (dice_ce, the default) or binary cross entropy (dice_bce); in classification, cross
    entropy alone (ce)."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the steps during which the learning rate rises, before its cosine decay."""
    foreground: float = Field(default=0.5, ge=0, le=1)
    """Fraction of crops drawn around a foreground voxel (in classification, centred on it); all foreground classes
    are equally likely."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between validations. Each reads a tenth of the pixels trained on since the last, at least 8 slices; in
    classification, a tenth of the crops, at least 512."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations without improvement; null never stops early."""
    keep: Literal["auto", "last", "best"] = "auto"
    """Network to keep: last, best (in validation; of those within 0.002 of the best, the last), or auto (best if
    patience is set, else last, which was trained longest and ended at the lowest learning rate)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of training: float32, bfloat16, float16 (on a GPU), or auto (bfloat16 where the hardware supports
    it). Scores are computed in float32."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Hardware to train on: auto (a CUDA GPU, else the CPU), cpu, gpu (or cuda), or mps."""
    devices: int = Field(default=1, ge=1)
    """Number of devices to train on."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare crops; 0 prepares them in the training process."""
    tensorboard: bool = False
    """Also write a TensorBoard log."""
    mlflow: bool = False
    """Also log to a local MLflow store."""
    monitor_every: int | None = Field(default=200, ge=1)
    """Steps between measurements of the slice bias; null disables them."""
    stress: bool = True
    """Also test with neighbouring slices missing, blank, noisy or shifted, and with reversed windows, on a sample of
    the test slices; by default in segmentation, and not possible in classification."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_task(cls, values: Any) -> Any:
        """Give the options that depend on the task their defaults."""
        if isinstance(values, dict) and values.get("task") == "classification":
            return {"loss": LOSSES["classification"][0], "stress": False, **values}
        return values

    @field_validator("loss")
    @classmethod
    def _of_task(cls, loss: str, info: ValidationInfo) -> str:
        task = info.data.get("task", "segmentation")
        if loss not in LOSSES[task]:
            known = " or ".join(map(repr, LOSSES[task]))
            raise ValueError(f"should be {known} with the task {task}")
        return loss

    @field_validator("stress")
    @classmethod
    def _of_segmentations(cls, stress: bool, info: ValidationInfo) -> bool:
        if stress and info.data.get("task") == "classification":
            raise ValueError("is measured on segmentations; omit it with the task classification")
        return stress

    @field_validator("devices")
    @classmethod
    def _divides_batch(cls, devices: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", devices)
        if batch % devices:
            raise ValueError(f"must divide the batch of {batch}, so that all devices get equally many crops")
        return devices

    @property
    def device(self) -> str:
        """The accelerator by the name that PyTorch gives its kind of device, or "auto"."""
        return "cuda" if self.accelerator == "gpu" else self.accelerator

    @property
    def asked_size(self) -> tuple[int, int] | None:
        """The size (y, x) of windows that the network is asked about: a classifier's crops; None where any size will do.

        Example:
            >>> TrainingConfig(task="classification", crop=(32, 32)).asked_size, TrainingConfig().asked_size
            ((32, 32), None)
        """
        return self.crop if self.task == "classification" else None

    @property
    def keeps_best(self) -> bool:
        """Whether to keep the network that is best in validation, not the last.

        Example:
            >>> TrainingConfig().keeps_best, TrainingConfig(patience=5).keeps_best
            (False, True)
        """
        return self.keep == "best" or (self.keep == "auto" and self.patience is not None)


class TrainConfig(Section):
    """Everything that a training run depends on.

    Raises:
        pydantic.ValidationError: an option is unknown or out of range; of one in a file or a dict, ``load_config`` and
            ``train`` raise ConfigError.

    Example:
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> config = TrainConfig.model_validate({"data": {"train": [pair]}, "training": {"steps": 500}})
        >>> config.training.steps, config.model.strategy, str(config.data.train[0].image.path)
        (500, 'twin', 'image.tif')
    """

    data: DataConfig
    """Data set."""
    model: ModelConfig = ModelConfig()
    """Network."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Augmentation of crops."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Random seed."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Check that the data set has what the training needs."""
        data, training = self.data, self.training
        check_missing_slices(
            self.augmentation.missing_slices, self.model.slices, "augmentation.missing_slices"
        )
        if training.task == "segmentation":
            try:
                data.label_options.check_written()
            except ConfigError as error:
                text = error.render(lambda name, value: spelled_in_configuration(f"data.{name}", value))
                raise ValueError(text) from error
        elif data.boundaries:
            raise ValueError(
                "data.boundaries: true: are compared in segmentations; omit it with the task classification"
            )
        for name, needed in (("patience", training.patience), ("keep", training.keep == "best")):
            if needed and not (data.validation or data.validation_fraction):
                raise ValueError(
                    f"training.{name}: {getattr(training, name)}: there are no validation data; give data.validation, set "
                    f"data.validation_fraction above 0, or omit {name}"
                )
        return self

    @property
    def reading(self) -> Reading:
        """How the network reads volumes; sigmoids of several classes let these overlap."""
        data, sigmoids = self.data, self.training.loss == "dice_bce"
        return Reading(
            step=self.model.step,
            plane=data.plane,
            intensity=data.intensity,
            fill=data.fill,
            **asdict(data.label_options),
            overlapping=None if sigmoids and data.classes <= 2 else sigmoids,
        )

    def lasting_options(self) -> dict[str, Any]:
        """Return the options that may not change when a run is resumed, as plain values by their dotted names.

        Example:
            >>> pair = {"image": "image.tif", "labels": "labels.tif"}
            >>> config = TrainConfig.model_validate({"data": {"train": [pair]}, "seed": 3})
            >>> options = config.lasting_options()
            >>> options["seed"], options["training.steps"], "training.workers" in options
            (3, 2000, False)
        """
        flat = _flat(self.model_dump(mode="json"))
        return {name: value for name, value in flat.items() if name not in _MOVABLE}

    def option_hashes(self) -> dict[str, str]:
        """Return a hash of each of these options.

        Hashes, because a network is passed on, and the paths of its training machine need not be.
        """
        return {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
            for name, value in without_secrets(self.lasting_options()).items()
        }

    @classmethod
    def template(cls) -> str:
        """Return a configuration to start from: every option with its default and description, as YAML.

        Options whose default follows from others are commented out: stated, they would contradict the others once a
        user edits them.

        Example:
            >>> print(TrainConfig.template()[:26])
            # Data set.
            data:
              # Name
        """
        pairs = {
            split: [{"image": f"{split}_image.tif", "labels": f"{split}_labels.tif"}]
            for split in ("train", "test")
        }
        return to_yaml(cls(data=DataConfig.model_validate(pairs)), commented=_FOLLOWING)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


_MOVABLE = {
    "data.root",
    *(f"training.{name}" for name in ("accelerator", "workers", "tensorboard", "mlflow", "stress")),
}
"""Options that may change when a run is resumed: where it runs, and what else it logs and tests, not its network."""

_FOLLOWING = {
    *(f"data.{name}" for name in ("name", "classes", "label_values", "ignore_label")),
    *(f"model.{name}" for name in ("slices", "strategy")),
    *(f"training.{name}" for name in ("loss", "stress")),
}
"""Options whose default follows from others: a data set of nnU-Net, a saved network, a symmetry, the task."""


def check_missing_slices(probability: float | None, slices: int, place: str = "missing_slices") -> None:
    """Raise ValueError if neighbours are to be missing in windows that have none.

    Example:
        >>> check_missing_slices(0.2, 3)
    """
    if probability and slices == 1:
        raise ValueError(
            f"{place}: a window of one slice has no neighbours that could be missing; leave it out"
        )


def _nnunet_options(folder: Path, channel: int | None = None) -> dict[str, Any]:
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
        described = read_json(folder / "dataset.json")
    except UNREADABLE as error:
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
