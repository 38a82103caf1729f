"""The configuration of ``train``: what each option means, its default and its range.

    config = load_config("train.yaml", TrainConfig)
    config.training.steps

These checks need only the configuration; ``evenslice.training.data`` checks the data against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    Section,
    did_you_mean,
    needs_extra,
    to_yaml,
)
from evenslice.training.data_config import DataConfig, LabelledFiles, config_folder

if TYPE_CHECKING:
    from evenslice.neutralizing import Record


with needs_extra("train", "a configuration"):
    from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo, field_validator, model_validator

__all__ = [
    "AugmentationConfig",
    "ModelConfig",
    "SlicesOption",
    "StrategyOption",
    "TieOption",
    "TrainConfig",
    "TrainingConfig",
    "WeightsOption",
    "check_added_symmetry",
    "check_boundaries",
    "check_missing_slices",
    "check_strategy",
    "default_yaml",
    "saved_record",
]


def _odd(slices: int) -> int:
    if slices % 2 == 0:
        raise ValueError("a window has an odd number of slices, such as 3 or 5")
    return slices


def _beside_file(weights: str, info: ValidationInfo) -> str:
    from evenslice.neutralizing import find_in_folder

    if weights in ("imagenet", "none"):
        return weights
    beside = config_folder(info) / weights
    try:
        _, file = find_in_folder("", str(beside))
        return file if Path(file).is_file() else weights
    except EvensliceError as error:  # of a name that no file can have
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); name a file that can") from error


def record_beside(weights: Any, info: ValidationInfo) -> Record | None:
    """Return what was done to the network that weights in a configuration hold; see ``saved_record``."""
    try:
        return saved_record(_beside_file(str(weights), info)) if isinstance(weights, str | Path) else None
    except ValueError:  # of which the option itself will tell
        return None


def saved_record(weights: str) -> Record | None:
    """Return what was done to the network in a file of ``save_network``; None for any other weights."""
    from evenslice.neutralizing import read_saved

    try:
        return (read_saved(weights) or (None,))[0]
    except ModelError:  # a damaged file, of which reading the weights will tell
        return None


def _known_strategy(strategy: str | tuple[float, ...]) -> str | tuple[float, ...]:
    from evenslice.neutralizing import STRATEGIES

    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(did_you_mean(strategy, STRATEGIES))
    return strategy


def check_strategy(strategy: str | tuple[float, ...], slices: int) -> None:
    """Raise ValueError if a strategy does not fit the number of slices."""
    from evenslice.neutralizing import find_strategy

    try:
        find_strategy(strategy, slices)
    except ConfigError as error:  # pydantic itself says which option of the configuration it is
        raise ValueError(str(error).removeprefix("strategy: ")) from error


def check_added_symmetry(value: str | None, info: ValidationInfo) -> str | None:
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


SlicesOption = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""The number of slices in a window."""

WeightsOption = Annotated[str, Field(min_length=1), AfterValidator(_beside_file)]
"""Weights by name or file; a file beside the configuration takes precedence."""

StrategyOption = Annotated[str | tuple[float, ...], AfterValidator(_known_strategy)]
"""The name of a strategy, or the weights of a symmetric profile."""

TieOption = Literal["mirror", "uniform"] | None
"""The name of a tie, or None."""


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
    slices: SlicesOption = 3
    """Odd number of slices in a window; by default that of the network in a file of neutralize, else 3."""
    step: int = Field(default=1, ge=1)
    """Distance between the slices of a window."""
    strategy: StrategyOption = "twin"
    """How colour kernels become slice kernels: pretrained, uniform, center, profile, mirror, twin, shuffle, equalize,
    reinit, random, mixer; or the weights of a symmetric profile. With symmetrize, the default is pretrained, and with
    a tie, the strategy of that name; a network saved by neutralize is left unchanged."""
    tie: TieOption = None
    """Symmetry to enforce during training: mirror or uniform."""

    symmetrize: str | None = Field(default=None, min_length=1)
    """Where to average the results for a window and its mirror: output, encoder, or the name of a module; null for
    nowhere."""

    @field_validator("tie", "symmetrize")
    @classmethod
    def _not_symmetric_yet(cls, value: str | None, info: ValidationInfo) -> str | None:
        return check_added_symmetry(value, info)

    @model_validator(mode="before")
    @classmethod
    def _fitting_defaults(cls, values: Any, info: ValidationInfo) -> Any:
        """Choose a strategy that fits the other options, and what a saved network says of itself.

        A network need not be made symmetric in two ways.
        """
        from evenslice.neutralizing import TIES

        if not isinstance(values, dict):
            return values
        fitting: dict[str, Any] = {}
        if values.get("tie") in TIES:
            fitting["strategy"] = values["tie"]
        if values.get("symmetrize") is not None:
            fitting["strategy"] = "pretrained"
        if record := record_beside(values.get("weights"), info):
            fitting["strategy"] = "pretrained"
            fitting["slices"] = record.slices
        return fitting | values

    @field_validator("strategy")
    @classmethod
    def _fits_slices(cls, strategy: str | tuple[float, ...], info: ValidationInfo) -> str | tuple[float, ...]:
        if "slices" in info.data:
            check_strategy(strategy, info.data["slices"])
        return strategy

    @property
    def extent(self) -> int:
        """The number of slices that a window spans.

        Example:
            >>> ModelConfig(slices=5, step=2).extent
            9
        """
        return (self.slices - 1) * self.step + 1

    @property
    def guard(self) -> int:
        """The number of slices that a window extends beyond its centre slice.

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
    """Steps between validations. Each uses a tenth as many pixels as were trained on since the last, but at least 8
    slices; in classification, a tenth as many crops, but at least 512."""
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
    def _fit_task(self) -> Self:
        check_boundaries(self.data, self.training, "data.boundaries")
        check_missing_slices(
            self.augmentation.missing_slices, self.model.slices, "augmentation.missing_slices"
        )
        return self


FOLLOWING = {
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


def check_boundaries(data: DataConfig, training: TrainingConfig, place: str = "boundaries") -> None:
    """Raise ValueError if the boundaries of a data set are to be compared, but the task gives no map of them."""
    if data.boundaries and training.task == "classification":
        raise ValueError(
            f"{place}: true: are compared in segmentations; omit it with the task classification"
        )


def default_yaml() -> str:
    """Return a template configuration of ``train``: every option with its default and description.

    Those whose default follows from other options are commented out: stated, they would contradict what a user enters
    for the others.

    Example:
        >>> print(default_yaml()[:26])
        # Data set.
        data:
          # Name
    """
    pairs = [
        LabelledFiles.model_validate({"image": f"{s}_image.tif", "labels": f"{s}_labels.tif"})
        for s in ("train", "test")
    ]
    return to_yaml(TrainConfig(data=DataConfig(train=(pairs[0],), test=(pairs[1],))), commented=FOLLOWING)
