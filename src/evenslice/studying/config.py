"""The configuration of a study: arms, architectures, data sets and seeds, and how each run trains and is audited."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from evenslice._core import Section, did_you_mean, needs_extra
from evenslice.training import (
    AugmentationConfig,
    DataConfig,
    LabelledFiles,
    SlicesOption,
    StrategyOption,
    TieOption,
    TrainingConfig,
    WeightsOption,
    check_strategy,
)

with needs_extra("train", "a study"):
    from pydantic import (
        AfterValidator,
        Field,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )

__all__ = ["Architecture", "Arm", "AuditOptions", "StudyConfig", "StudyData"]


class Arm(Section):
    """One way of initializing and training networks, to be compared with others."""

    name: str = Field(min_length=1, description="Name of the arm in results.")
    strategy: StrategyOption = Field(
        default="uniform", description="How colour kernels become slice kernels, as in train."
    )
    tie: TieOption = Field(default=None, description="Symmetry to enforce in training: mirror or uniform.")
    z_flip: bool | None = Field(
        default=None, description="Randomly reverse the order of slices; by default as in augmentation."
    )
    weights: WeightsOption | None = Field(default=None, description="Replaces the architecture's weights.")


class Architecture(Section):
    """A network to compare the arms with."""

    name: str = Field(min_length=1, description="Name of the network in results.")
    spec: str = Field(min_length=1, description="Network, as in train.")
    weights: WeightsOption = Field(default="imagenet", description="Weights: imagenet, none, or a file.")


def _one_device(training: TrainingConfig) -> TrainingConfig:
    if training.devices > 1:
        raise ValueError("a run of a study uses one device; use several workers to run several at once")
    return training


OneDevice = Annotated[TrainingConfig, AfterValidator(_one_device)]


class StudyData(DataConfig):
    """A data set to compare the arms on."""

    test: tuple[LabelledFiles, ...] = Field(min_length=1, description="Pairs for tests and audits.")
    training: OneDevice = Field(
        default_factory=TrainingConfig,
        description="Training options for this data set that differ from those of the study.",
    )

    @field_serializer("training")
    def _in_full(self, training: TrainingConfig) -> dict[str, Any]:
        """Keep defaults, too: they may differ from the options of the study."""
        return training.model_dump(mode="json")

    def data(self) -> DataConfig:
        """Return the data set without its training options."""
        return DataConfig.model_validate(self.model_dump(exclude={"training"}))


def _known_method(method: str) -> str:
    from evenslice.auditing import METHODS

    if method not in METHODS:
        raise ValueError(did_you_mean(method, METHODS))
    return method


Method = Annotated[str, AfterValidator(_known_method)]


class AuditOptions(Section):
    """How trained networks are audited, on the test volumes."""

    method: Method = Field(default="gradient", description="Attribution method.")
    precision: float = Field(
        default=0.01, gt=0, description="Half-width of 95 % intervals of pair biases at which to stop."
    )
    max_windows: int | None = Field(default=400, ge=1, description="Largest number of windows, or null.")
    batch: int = Field(default=4, ge=1, description="Windows per forward pass.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="Precision; rounding in bfloat16 alone causes biases of 0.001."
    )


def _given(training: Any) -> dict[str, Any] | None:
    """Return the training options that were set; None if they are invalid, which is reported later."""
    if isinstance(training, TrainingConfig):
        return training.model_dump(exclude_unset=True)
    return {} if training is None else training if isinstance(training, dict) else None


def _completed(data: Any, common: dict[str, Any]) -> Any:
    """Return a data set with the common training options that it does not override."""
    if isinstance(data, StudyData):
        training = TrainingConfig.model_validate(common | (_given(data.training) or {}))
        return data.model_copy(update={"training": training})
    own = _given(data.get("training")) if isinstance(data, dict) else None
    return data if own is None else {**data, "training": common | own}


class StudyConfig(Section):
    """The configuration of a study.

    Example:
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> config = StudyConfig.model_validate({
        ...     "seeds": [0, 1],
        ...     "training": {"steps": 400, "batch": 4},
        ...     "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        ...     "architectures": [{"name": "Lite0", "spec": "smp:Unet/tu-tf_efficientnet_lite0"}],
        ...     "datasets": [{"name": "em", "train": [pair], "test": [pair], "training": {"steps": 300}}],
        ... })
        >>> len(config.arms), config.datasets[0].training.steps, config.datasets[0].training.batch
        (2, 300, 4)
    """

    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Random seeds; each arm is run with each of them."
    )
    slices: SlicesOption = Field(default=3, description="Number of slices in a window, odd.")
    step: int = Field(default=1, ge=1, description="Distance between the slices of a window.")
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="Augmentation of crops."
    )
    training: OneDevice = Field(default=TrainingConfig(), description="Training.")
    audit: AuditOptions = Field(default=AuditOptions(), description="Audit of the trained networks.")
    arms: tuple[Arm, ...] = Field(min_length=1, description="Arms to compare.")
    baseline: str = Field(
        default="pretrained", validate_default=True, description="Arm that the others are compared with."
    )
    margin: float = Field(
        default=0.01, gt=0, lt=1, description="Loss of Dice relative to the baseline that would matter."
    )
    architectures: tuple[Architecture, ...] = Field(min_length=1, description="Networks.")
    datasets: tuple[StudyData, ...] = Field(min_length=1, description="Data sets.")

    @model_validator(mode="before")
    @classmethod
    def _complete_training(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Complete each data set with the common training options."""
        common, datasets = _given(values.get("training")), values.get("datasets")
        if common and isinstance(datasets, list | tuple):
            return {**values, "datasets": [_completed(data, common) for data in datasets]}
        return values

    @field_validator("arms", "architectures", "datasets")
    @classmethod
    def _named_apart(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} occurs twice; give different names")
        return items

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError("give different seeds, from 0 to 4294967295")
        return seeds

    @field_validator("arms")
    @classmethod
    def _fit_slices(cls, arms: tuple[Arm, ...], info: ValidationInfo) -> tuple[Arm, ...]:
        for arm in arms if "slices" in info.data else ():
            check_strategy(arm.strategy, info.data["slices"])
        return arms

    @field_validator("baseline")
    @classmethod
    def _is_an_arm(cls, baseline: str, info: ValidationInfo) -> str:
        names = [arm.name for arm in info.data.get("arms", ())]
        if names and baseline not in names:
            raise ValueError(f"no arm has this name; the arms are {', '.join(names)}")
        return baseline
